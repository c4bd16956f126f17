"""How vivid are the objects that the prompt names? A reward that is local by construction, to validate measurements of maps.

Only pixels inside the masks of the objects count, so credit for places must help here, if it can anywhere. It does not measure
what people would like, and has its pitfalls:

* An object that is not found gives 0, so the reward still depends on whether there is one, and jumps where it appears.
* Black and white are never vivid, and orange is more so than green: colours are chosen early and for a whole object.
* The detector takes the median of the picture's plain pixels as the ground, so the ground has a small influence after all.
* Masks are those of the final image: where the object might have been does not count.
"""

from collections.abc import Callable, Sequence
from types import MappingProxyType

import numpy as np

from evaluators.geneval import evaluate
from evaluators.geneval.rules import filter_detections
from evaluators.interface import Asked, Score, mean_scores

# Raise the version when a change alters what an image scores.
PROTOCOL = "vivid-v1"


class Vivid:
    """Judges how vivid the objects of a GenEval record are (see :class:`evaluators.interface.Evaluator`).

    The reward, in [0, 1], is the mean over the record's clauses of the mean chroma inside the mask of the best object of the
    clause's class, 0 where none is found. The chroma of a pixel is ``(max - min) / 255`` of its red, green and blue: 0 for
    greys, black and white, 0.9 for the mini world's orange.
    """

    primary = "vivid"
    paired = MappingProxyType({"reward": "vividness", "found": "found"})

    def __init__(self, engine: str) -> None:
        """
        Args:
            engine: a detector of GenEval's; without masks an object fills its box.
        """
        self.detector = evaluate.detector(engine)

    @property
    def protocol(self) -> str:
        """Name and version, with the detector."""
        return f"{PROTOCOL}/{self.detector.name}"

    def lacks(self, prompt: Asked) -> str:
        """A GenEval record that can be judged, if the prompt has none."""
        return evaluate.lacks(prompt, self.detector)

    def submit(self, prompts: Sequence[Asked], images: Sequence[np.ndarray]) -> Callable[[], list[dict]]:
        """The returned function does the work, since detectors compute on the same device as the model."""
        return lambda: [
            {"stratum": "all", **_vividness(image, masks)}
            for image, masks in zip(images, self._masks(prompts, images), strict=True)
        ]

    def places(self, prompts: Sequence[Asked], images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The objects that are judged, bool (H, W)."""
        masks = self._masks(prompts, images)
        return [np.logical_or.reduce([np.zeros(i.shape[:2], bool), *own]) for i, own in zip(images, masks, strict=True)]

    def summarise(self, prompts: Sequence[Asked], verdicts: Sequence[dict]) -> list[Score]:
        """The mean reward, and the share of the objects that were found."""
        return mean_scores(prompts, verdicts, {"vivid": "reward", "vivid_found": "found"})

    def _masks(self, prompts: Sequence[Asked], images: Sequence[np.ndarray]) -> list[list[np.ndarray]]:
        """For each image the mask of the best object of each clause, bool (H, W); empty where there is none."""
        found = []
        for prompt, image, raw in zip(prompts, images, self.detector(images), strict=True):
            objects, shape = filter_detections(raw, prompt.target["tag"]), image.shape[:2]
            best = [objects.get(clause["class"], [])[:1] for clause in prompt.target["include"]]
            found.append([evaluate.area(own[0], shape) if own else np.zeros(shape, bool) for own in best])
        return found


def _vividness(image: np.ndarray, masks: Sequence[np.ndarray]) -> dict:
    chroma = np.ptp(image.astype(np.float64), axis=-1) / 255
    values = [float(chroma[mask].mean()) if mask.any() else 0.0 for mask in masks]
    return {"reward": sum(values) / len(values), "found": sum(mask.any() for mask in masks) / len(masks)}
