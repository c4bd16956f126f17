"""What GenEval needs from an object detector."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from evaluators.geneval.rules import Detection


class Detector(Protocol):
    """Finds objects of the vocabulary's classes.

    Attributes:
        name: becomes part of the protocol of every result, so it should name weights and version if there are any.
        classes: the class names it knows.
        colors: the colour words it knows.
    """

    name: str
    classes: tuple[str, ...]
    colors: tuple[str, ...]

    def __call__(self, images: Sequence[np.ndarray]) -> list[dict[str, list[Detection]]]:
        """Per image: class -> objects in any order, unfiltered, with masks if the detector has them.

        Args:
            images: uint8 (H, W, 3) in RGB.
        """
        ...

    def with_colors(self, image: np.ndarray, name: str, detections: Sequence[Detection]) -> list[Detection]:
        """The same objects of class ``name``, in the same order, with ``color`` set.

        Called only where a record asks for a colour, and with no more objects than it asks for: naming colours may
        cost more than finding objects (the official evaluator runs CLIP on every crop).
        """
        ...
