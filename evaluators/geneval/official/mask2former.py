"""The detector's network by transformers, in pure PyTorch."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from transformers import Mask2FormerForUniversalSegmentation

from evaluators import hub
from evaluators.geneval.official import preprocess
from evaluators.geneval.official.checkpoint import FILE, SHA256, URL
from evaluators.geneval.official.convert import FOLDER_VARIABLE, RECORD
from evaluators.geneval.official.instances import Instances, instances
from evaluators.geneval.official.preprocess import Prepared
from evaluators.geneval.prompts import COCO_NAMES
from star.common import weights
from star.common.errors import UserError, one_line
from star.common.files import model_digest, parse_json

PROXY = "facebook/mask2former-swin-small-coco-instance"
# Large images take half a GB each.
BATCH = 4
# transformers builds these, but they do not affect the output.
UNUSED = ("criterion.empty_weight", ".swin.layernorm.weight", ".swin.layernorm.bias")


class Mask2Former:
    """Finds instances of COCO's classes.

    Attributes:
        name: of the weights, part of the protocol.
        model: the network, in float32.
    """

    def __init__(self, folder: Path, name: str, device: str | torch.device = "cpu", **sides: int) -> None:
        """
        Args:
            folder: a Mask2Former in transformers' format.
            name: what its weights are called.
            device: where it computes.
            sides: ``long`` and ``short`` of :func:`~evaluators.geneval.official.preprocess.prepare`.

        Raises:
            UserError: the folder holds no such model, or not all of its weights.
        """
        self.name = name
        self.device = torch.device(device)
        self.model = _load(folder)  # see evaluators/device.py
        self._sides = sides

    @torch.inference_mode()
    def __call__(self, images: Sequence[np.ndarray], floor: float = 0.0) -> Iterator[Instances]:
        """The objects of each image, uint8 (H, W, 3) in RGB; ``floor`` is that of
        :func:`~evaluators.geneval.official.instances.instances`."""
        for start in range(0, len(images), BATCH):
            prepared = [preprocess.prepare(image, **self._sides) for image in images[start : start + BATCH]]
            for _, alike in groupby(prepared, lambda image: image.pixels.shape):
                batch = list(alike)
                for image, classes, masks in zip(batch, *self.logits(batch), strict=True):
                    yield instances(classes, masks, image, floor)

    @torch.inference_mode()
    def logits(self, images: Sequence[Prepared]) -> tuple[torch.Tensor, torch.Tensor]:
        """Class logits (n, queries, 81) and mask logits (n, queries, H / 4, W / 4) of images of one size."""
        pixels = torch.stack([image.pixels for image in images]).to(self.device, self.model.dtype)
        found = self.model.to(self.device)(pixel_values=pixels)
        return found.class_queries_logits, found.masks_queries_logits


def official(folder: Path, device: str | torch.device) -> Mask2Former:
    """The detector that ``star convert geneval-detector`` wrote; its name includes the start of the checkpoint's sha256.

    Raises:
        UserError: it is missing, or was changed since.
    """
    try:
        record = parse_json((folder / RECORD).read_text(encoding="utf-8"))
        sha256, converted = str(record["sha256"]), record["weights"]
    except FileNotFoundError:
        raise UserError(
            f"GenEval's detector is not in {folder} ({FOLDER_VARIABLE} names another folder); "
            f"`curl -LO {URL} && star convert geneval-detector {FILE}` gets it"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / RECORD} cannot be read: {error!r}; `star convert geneval-detector` writes it") from None
    if model_digest(folder) != converted:
        raise UserError(f"the weights or config.json in {folder} are not what was converted; convert the checkpoint again")
    return Mask2Former(folder, f"mask2former-{sha256[:8]}" + ("" if sha256 == SHA256 else "-unofficial"), device)


def proxy(device: str | torch.device) -> Mask2Former:
    """The same network from another training run by its authors: it stands in for the official one, and its name says so.

    Raises:
        UserError: it is missing.
    """
    folder = hub.locate(PROXY, "the geneval engine hf-coco")
    return Mask2Former(folder, f"proxy-hf-coco-{hub.model_name(PROXY, folder)}", device)


def _load(folder: Path) -> Any:
    try:
        model, report = Mask2FormerForUniversalSegmentation.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(f"no Mask2Former can be loaded from {folder}: {one_line(error)[:300]}") from error
    if wrong := weights.fault(model, report, UNUSED):
        raise UserError(f"the Mask2Former in {folder} {wrong}")
    if model.config.num_labels != len(COCO_NAMES):
        raise UserError(f"the Mask2Former in {folder} knows {model.config.num_labels} classes, not the 80 of COCO")
    return model.eval()
