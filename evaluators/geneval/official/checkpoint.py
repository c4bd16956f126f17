"""The published detector's file: what it is, where it is from, and reading it without running code from it."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from star.common import files
from star.common.errors import UserError, one_line

SHA256 = "743b7d99015f1224c6d57fd4b14d04b15cc8ec72ae7ee7831e7c71d8873b7a54"
URL = (
    "https://download.openmmlab.com/mmdetection/v2.0/mask2former/mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco/"
    "mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco_20220504_001756-743b7d99.pth"
)
FILE = URL.rsplit("/", 1)[-1]

Weights = dict[str, torch.Tensor]

# The types in a checkpoint's training logs besides plain values and tensors. A file names a class by the module that held
# it when the file was written, and numpy has moved some since.
_ARRAY = np.array(0.0).__reduce__()[0]
_SCALAR: Any = np.float64(0).__reduce__()[0]
HARMLESS: list[Any] = [
    np.ndarray,
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8", "bool")),
    *((_ARRAY, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    *((_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]


def sha256(file: Path) -> str:
    """The sha256 of a file.

    Raises:
        UserError: it is missing or cannot be read.
    """
    try:
        return files.sha256(file)
    except FileNotFoundError:
        raise UserError(f"no such file: {file}; the official checkpoint: `curl -LO {URL}`") from None
    except OSError as error:
        raise UserError(f"cannot read {file}: {error}") from None


def verify(file: Path, any_checkpoint: bool = False) -> str:
    """The sha256 of a checkpoint, which must be the official one's unless ``any_checkpoint``.

    Raises:
        UserError: it is missing or another file.
    """
    found = sha256(file)
    if found != SHA256 and not any_checkpoint:
        raise UserError(
            f"{file} is not the detector of GenEval: its sha256 is {found}, that of {FILE} is {SHA256}; "
            f"`curl -LO {URL}` gets it, --any-checkpoint takes this file as it is"
        )
    return found


def read(file: Path) -> Weights:
    """The weights of a checkpoint by mmdet's names. Only tensors and plain values are read: a file that holds anything
    else is refused, because reading it could run its code.

    Raises:
        UserError: it is no checkpoint, or holds something else.
    """
    try:
        with torch.serialization.safe_globals(HARMLESS):
            content = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"no such file: {file}") from None
    except (OSError, RuntimeError, EOFError, KeyError, ValueError, pickle.UnpicklingError) as error:
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise UserError(f"{file} cannot be read as a checkpoint of plain weights: {reason[:300]}") from None
    weights = content.get("state_dict", content) if isinstance(content, dict) else None
    if not weights or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise UserError(f"{file} is no checkpoint of mmdet: it has no state_dict of tensors")
    return dict(weights)
