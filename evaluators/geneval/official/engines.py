"""The detectors of GenEval by name: which network finds objects, and which CLIP names their colours."""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np

from evaluators.device import own_device
from evaluators.geneval.detector import Detector
from evaluators.geneval.official import clips, compat, mask2former, mmdetection
from evaluators.geneval.official.checkpoint import FILE
from evaluators.geneval.official.clips import Clip, TransformersClip
from evaluators.geneval.official.colors import Colors
from evaluators.geneval.official.convert import FOLDER, FOLDER_VARIABLE
from evaluators.geneval.official.instances import Instances
from evaluators.geneval.prompts import COCO_NAMES, PALETTE
from evaluators.geneval.rules import SCORE_THRESHOLD, Detection


class Network(Protocol):
    """Finds instances; ``name`` says with which weights."""

    name: str

    def __call__(self, images: Sequence[np.ndarray], floor: float = 0.0) -> Iterable[Instances]:
        """The instances of each image, uint8 (H, W, 3) in RGB; some of those with scores up to ``floor`` may be left out."""
        ...


class OfficialDetector:
    """GenEval's classes and colours (see :class:`~evaluators.geneval.detector.Detector`).

    Detections that are below every threshold of the rules are left out: their masks would fill the memory.
    """

    classes: tuple[str, ...] = COCO_NAMES
    colors: tuple[str, ...] = PALETTE

    def __init__(self, network: Network, clip: Clip, flow_grpo_compat: bool = False) -> None:
        """
        Args:
            network: finds objects.
            clip: names their colours.
            flow_grpo_compat: judge images as Flow-GRPO's reward server does: as JPEG, and with red and blue exchanged
                for the network. How that server differs in its CLIP is up to ``clip``.
        """
        self.name = "+".join([network.name, clip.name, *([compat.NAME] if flow_grpo_compat else [])])
        self._network, self._colors, self._compat = network, Colors(clip), flow_grpo_compat

    def __call__(self, images: Sequence[np.ndarray]) -> list[dict[str, list[Detection]]]:
        """Class -> objects per image; see :class:`~evaluators.geneval.detector.Detector`."""
        if self._compat:
            images = [np.ascontiguousarray(compat.jpeg(image)[..., ::-1]) for image in images]
        return [_by_class(found) for found in self._network(images, SCORE_THRESHOLD)]

    def with_colors(self, image: np.ndarray, name: str, detections: Sequence[Detection]) -> list[Detection]:
        """The objects with their colours; see :class:`~evaluators.geneval.detector.Detector`."""
        seen = compat.jpeg(image) if self._compat else image
        colors = self._colors(seen, name, detections)
        return [replace(detection, color=color) for detection, color in zip(detections, colors, strict=True)]


def _by_class(found: Instances) -> dict[str, list[Detection]]:
    objects: dict[str, list[Detection]] = {}
    labels, scores, boxes = found.labels.tolist(), found.scores.tolist(), found.boxes.tolist()
    for label, score, box, mask in zip(labels, scores, boxes, found.masks.cpu().numpy(), strict=True):
        objects.setdefault(COCO_NAMES[label], []).append(Detection(tuple(box), score, mask=mask))
    return objects


def _mask2former(device: str) -> Network:
    return mask2former.official(Path(os.environ.get(FOLDER_VARIABLE) or FOLDER), device)


def _mmdet(device: str) -> Network:
    return mmdetection.official(Path(os.environ.get(mmdetection.FILE_VARIABLE) or FILE), device)


def _clip(device: str, activation: str = "quick_gelu") -> Clip:
    return TransformersClip(os.environ.get(clips.FOLDER_VARIABLE) or clips.PUBLISHED, device, activation)


# Flow-GRPO's server has open_clip 2.31, which builds this CLIP with the ordinary GELU; True: as that server judges.
ENGINES: dict[str, Callable[[str], Detector]] = {
    "mask2former": lambda device: OfficialDetector(_mask2former(device), _clip(device)),
    "mask2former_open_clip": lambda device: OfficialDetector(_mask2former(device), clips.published_open_clip(device)),
    "mask2former_flow_grpo_compat": lambda device: OfficialDetector(_mask2former(device), _clip(device, "gelu"), True),
    "mmdet": lambda device: OfficialDetector(_mmdet(device), _clip(device)),
    "mmdet_flow_grpo_compat": lambda device: OfficialDetector(_mmdet(device), _clip(device, "gelu"), True),
    "hf-coco": lambda device: OfficialDetector(mask2former.proxy(device), _clip(device)),
}


def make(engine: str) -> Detector:
    """The detector for a name in :data:`ENGINES`, on the GPU if there is one.

    Raises:
        UserError: weights or packages are missing; the message gives the command that gets them.
    """
    return ENGINES[engine](own_device())
