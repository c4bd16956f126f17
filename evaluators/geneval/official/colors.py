"""The colours of detected objects, named by CLIP as GenEval does it."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from evaluators.geneval.official.clips import Clip, mixed_precision
from evaluators.geneval.prompts import PALETTE
from evaluators.geneval.rules import Detection

# The article is always "a", as in GenEval: "a photo of a orange apple".
TEMPLATES = ("a photo of a {color} {name}", "a photo of a {color}-colored {name}", "a photo of a {color} object")
# Everything but the object is painted over with this grey, #999.
BACKGROUND = 153
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], dtype=np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], dtype=np.float32)
BATCH = 16
SHARPNESS = 100


class Colors:
    """Classifies objects among the palette's colours. The texts of a class are embedded once."""

    def __init__(self, clip: Clip) -> None:
        self.clip = clip
        self._classifiers: dict[str, torch.Tensor] = {}

    def __call__(self, image: np.ndarray, name: str, detections: Sequence[Detection]) -> list[str]:
        """The colour of each object of class ``name``; ``image`` is uint8 (H, W, 3) in RGB."""
        crops = [pixels(crop(image, detection), self.clip.side) for detection in detections]
        found: list[str] = []
        for start in range(0, len(crops), BATCH):
            logits = self._logits(torch.stack(crops[start : start + BATCH]), name)
            found += [PALETTE[index] for index in logits.float().cpu().argmax(dim=1)]  # the first of ties
        return found

    @torch.inference_mode()
    def _logits(self, crops: torch.Tensor, name: str) -> torch.Tensor:
        """Logits (n, 10), multiplied in the precision of the rest: float16 rounds them to 1/64, and ties happen."""
        with mixed_precision(self.clip.device):
            vectors = F.normalize(self.clip.pictures(crops), dim=-1)
            return SHARPNESS * vectors @ self._classifier(name).T

    def _classifier(self, name: str) -> torch.Tensor:
        """(10, d): per colour the normalised mean of the normalised embeddings of its three texts."""
        if name not in self._classifiers:
            texts = [template.format(color=color, name=name) for color in PALETTE for template in TEMPLATES]
            vectors = F.normalize(self.clip.texts(texts).float(), dim=-1)
            means = vectors.unflatten(0, (len(PALETTE), len(TEMPLATES))).mean(dim=1)
            self._classifiers[name] = F.normalize(means, dim=-1)
        return self._classifiers[name]


def crop(image: np.ndarray, detection: Detection) -> np.ndarray:
    """An object on plain grey, cropped to its box, uint8 (h, w, 3); on the image itself if it has no mask."""
    shown = image if detection.mask is None else np.where(detection.mask[..., None], image, np.uint8(BACKGROUND))
    x0, y0, x1, y1 = (round(edge) for edge in detection.box)
    return shown[y0:y1, x0:x1]


def pixels(image: np.ndarray, side: int) -> torch.Tensor:
    """open_clip's validation transform: short side to ``side``, bicubic, then a centre crop; float32 (3, side, side).

    Args:
        image: uint8 (h, w, 3) in RGB.
        side: in pixels.
    """
    height, width = image.shape[:2]
    short = min(height, width)
    size = int(side * width / short), int(side * height / short)
    resized = Image.fromarray(np.ascontiguousarray(image)).resize(size, Image.Resampling.BICUBIC)
    left, top = (round((length - side) / 2) for length in size)
    values = np.asarray(resized.crop((left, top, left + side, top + side)), dtype=np.float32) / 255
    return torch.from_numpy((values - MEAN) / STD).permute(2, 0, 1)
