"""PaddleOCR 3.x with the settings nearest to those of the published reward, which used 2.9.1."""

import os
from collections.abc import Sequence
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from star.common.errors import UserError

RUNTIME = "paddlepaddle>=3.2,!=3.3.0,!=3.3.1"  # those two fail on CPUs because of oneDNN (PaddlePaddle/Paddle#77340)
# Names a folder of local models: det/ and rec/, each with inference.yml and the model's file.
MODELS_VARIABLE = "STAR_PADDLEOCR_MODELS"
# What 3.x picks for English and PP-OCRv4. 2.9.1 has the same recogniser, but an English PP-OCRv3 detector.
DETECTOR, RECOGNISER = "PP-OCRv4_mobile_det", "en_PP-OCRv4_mobile_rec"
# 2.9.1's own: images with a side of more than 960 pixels are scaled down, smaller ones are not scaled up; lines with a score
# below 0.5 are dropped; no part of the pipeline rotates or unwarps anything.
SETTINGS = {
    "text_det_limit_side_len": 960,
    "text_det_limit_type": "max",
    "text_det_thresh": 0.3,
    "text_det_box_thresh": 0.6,
    "text_det_unclip_ratio": 1.5,
    "text_rec_score_thresh": 0.5,
    "text_recognition_batch_size": 6,
    "use_doc_orientation_classify": False,
    "use_doc_unwarping": False,
    "use_textline_orientation": False,
    "device": "cpu",
}
# As in 2.9.1, where oneDNN is off unless asked for.
BY_PADDLE = {"cpu_threads": 1, "enable_mkldnn": False}


class Paddle:
    """Recognises the lines of pictures. The models are loaded by the first picture.

    Attributes:
        name: engine, version and models, part of the protocol.
    """

    def __init__(self, flow_grpo_compat: bool = False, models: str | Path | None = None) -> None:
        """
        Args:
            flow_grpo_compat: hand the picture over with red and blue exchanged, as Flow-GRPO's reward does: it gives an
                RGB array to an interface that takes BGR.
            models: folder with ``det/`` and ``rec/``, in Paddle's format or as ``inference.onnx``; by default the one
                that the environment variable :data:`MODELS_VARIABLE` names. Without either, PaddleOCR downloads its models.

        Raises:
            UserError: PaddleOCR, what runs its models, or a model folder is missing.
        """
        try:
            installed = version("paddleocr")
        except PackageNotFoundError:
            raise UserError("the ocr engine paddleocr is not installed: pip install 'star-rl[paddleocr]'") from None
        folder = models or os.environ.get(MODELS_VARIABLE)
        self._models = _local_models(Path(folder)) if folder else _hub_models()
        if "engine" not in self._models and find_spec("paddle") is None:
            raise UserError(f"paddleocr needs PaddlePaddle to run its models: pip install '{RUNTIME}'")
        self._flow_grpo_compat = flow_grpo_compat
        names = [self._models[f"text_{role}_model_name"] for role in ("detection", "recognition")]
        variant = ["flow_grpo_compat"] if flow_grpo_compat else []
        self.name = "+".join([f"paddleocr-{installed}", *names, *variant])

    def lines(self, image: np.ndarray) -> Sequence[str]:
        """Recognised lines, top to bottom; empty if there are none. ``image`` is uint8 (H, W, 3) in RGB."""
        return self._read(image)["rec_texts"]

    def outlines(self, image: np.ndarray) -> Sequence[np.ndarray]:
        """The corners of each recognised line; empty if there are none. ``image`` is uint8 (H, W, 3) in RGB."""
        return self._read(image)["rec_polys"]

    def _read(self, image: np.ndarray) -> Any:
        handed = image if self._flow_grpo_compat else image[..., ::-1]  # PaddleOCR takes arrays as BGR
        (result,) = self._engine.predict(np.ascontiguousarray(handed))
        return result

    @cached_property
    def _engine(self) -> Any:
        from paddleocr import PaddleOCR

        return PaddleOCR(**SETTINGS, **self._models)


def _hub_models() -> dict[str, Any]:
    return {
        "text_detection_model_name": DETECTOR,
        "text_recognition_model_name": RECOGNISER,
        **BY_PADDLE,
    }


def _local_models(folder: Path) -> dict[str, Any]:
    """PaddleOCR's arguments for the models of a folder, with the names from their inference.yml."""
    arguments: dict[str, Any] = {}
    for part, role in (("det", "detection"), ("rec", "recognition")):
        arguments[f"text_{role}_model_name"] = _model_name(folder / part / "inference.yml")
        arguments[f"text_{role}_model_dir"] = str(folder / part)
    if all((folder / part / "inference.onnx").exists() for part in ("det", "rec")):
        return arguments | {"engine": "onnxruntime", "engine_config": {"intra_op_num_threads": 1}}
    return arguments | BY_PADDLE


def _model_name(file: Path) -> str:
    try:
        return str(yaml.safe_load(file.read_text("utf-8"))["Global"]["model_name"])
    except OSError:
        raise UserError(
            f"{file} is missing: a folder of PaddleOCR models (here from {MODELS_VARIABLE}) holds det/ and rec/, each with "
            "inference.yml and a model"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{file} does not name its model (Global, model_name): {error!r}") from None
