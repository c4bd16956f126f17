"""PickScore as an evaluator: how well would people like the picture for the prompt?"""

from collections.abc import Callable, Sequence
from types import MappingProxyType

import numpy as np

from evaluators.geneval import evaluate
from evaluators.geneval.mini import MiniDetector
from evaluators.interface import Asked, Places, Score, mean_scores

# Raise the version when a change alters what an image scores.
PROTOCOL = "pickscore-v1"

REWARD_SCALE = 26
"""Flow-GRPO (arXiv 2505.05470) divides the score by it for training, and only there."""


class Preference:
    """Scores images by a CLIP (see :class:`evaluators.interface.Evaluator`). The reported score is raw.

    Attributes:
        scorer: the CLIP.
        places: a preference is for the whole picture, so it is None (see :func:`evaluators.interface.places_of`), except in
            the mini world: there it gives the objects that the prompt's GenEval record names.
    """

    primary = "pickscore"
    paired = MappingProxyType({"score": "PickScore"})

    def __init__(self, engine_name: str) -> None:
        from evaluators.pickscore.score import engine  # takes seconds, and whoever reads results only asks for names

        self.scorer = engine(engine_name)
        self.places: Places | None = _objects if engine_name == "mini" else None

    @property
    def protocol(self) -> str:
        """Name and version, with the model."""
        return f"{PROTOCOL}/{self.scorer.name}"

    def lacks(self, prompt: Asked) -> str:
        """Nothing: any text will do."""
        return ""

    def submit(self, prompts: Sequence[Asked], images: Sequence[np.ndarray]) -> Callable[[], list[dict]]:
        """The returned function does the work, since the scorer computes on the same device as the model."""
        return lambda: self._judge(prompts, images)

    def slopes(self, prompts: Sequence[Asked], images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The gradient of the score with respect to the pixels in [0, 1], float32 (H, W, 3) for each image."""
        return self.scorer.slopes([prompt.text for prompt in prompts], images)

    def summarise(self, prompts: Sequence[Asked], verdicts: Sequence[dict]) -> list[Score]:
        """The mean raw score."""
        return mean_scores(prompts, verdicts, {"pickscore": "score"})

    def _judge(self, prompts: Sequence[Asked], images: Sequence[np.ndarray]) -> list[dict]:
        scores = self.scorer.score([prompt.text for prompt in prompts], images).tolist()
        return [{"stratum": "all", "reward": score / REWARD_SCALE, "score": score} for score in scores]


def _objects(prompts: Sequence[Asked], images: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The objects of the mini world that count for the prompts' records, bool (H, W) for each image; none without a record."""
    none = {"tag": "", "include": []}
    records = [dict(prompt.target) if none.keys() <= prompt.target.keys() else none for prompt in prompts]
    return evaluate.places(records, images, MiniDetector())
