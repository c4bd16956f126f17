"""RapidOCR: PP-OCR models that ship in a wheel, run by onnxruntime."""

from collections.abc import Sequence
from functools import cached_property
from importlib.metadata import version
from typing import Any

import numpy as np

# Pictures are not scaled up: the defaults make small ones 736 pixels large, which takes 15 times longer and reads no better.
SETTINGS = {
    "EngineConfig.onnxruntime.intra_op_num_threads": 1,
    "EngineConfig.onnxruntime.inter_op_num_threads": 1,
    "Global.log_level": "error",
    "Global.text_score": 0.0,
    "Det.limit_side_len": 960,
    "Det.limit_type": "max",
    "Rec.rec_img_shape": [3, 48, 144],
}


class Rapid:
    """Recognises the lines of pictures. The models are loaded by the first picture.

    Attributes:
        name: engine and version, part of the protocol.
    """

    def __init__(self) -> None:
        self.name = f"rapidocr-{version('rapidocr')}"

    def lines(self, image: np.ndarray) -> Sequence[str]:
        """Recognised lines, top to bottom; empty if there are none. ``image`` is uint8 (H, W, 3) in RGB."""
        # The engine takes arrays as BGR, and remembers the switches of the last call unless they are given.
        result = self._engine(image[..., ::-1], use_det=True, use_cls=False, use_rec=True)
        return result.txts or ()

    def outlines(self, image: np.ndarray) -> Sequence[np.ndarray]:
        """The four corners of each line; empty if there are none. ``image`` is uint8 (H, W, 3) in RGB."""
        found = self._engine(image[..., ::-1], use_det=True, use_cls=False, use_rec=False).boxes
        return [] if found is None else list(found)

    @cached_property
    def _engine(self) -> Any:
        from rapidocr import RapidOCR

        return RapidOCR(params=SETTINGS)
