"""A reward of one's own, as docs/extending.md tells it: the brighter the picture, the better."""

from collections.abc import Callable, Sequence

import numpy as np

from evaluators.interface import Asked, Score, mean_scores


class Brightness:
    """The mean of all pixels, in [0, 1]."""

    protocol = "brightness-v1"
    primary = "brightness"
    paired = {"reward": "brightness"}

    def lacks(self, prompt: Asked) -> str:
        """It needs nothing of a prompt."""
        return ""

    def submit(self, prompts: Sequence[Asked], images: Sequence[np.ndarray]) -> Callable[[], list[dict]]:
        """Judges at once; one that waits for others would return a function that waits."""
        verdicts = [{"stratum": "all", "reward": float(image.mean()) / 255} for image in images]
        return lambda: verdicts

    def summarise(self, prompts: Sequence[Asked], verdicts: Sequence[dict]) -> list[Score]:
        """The mean over images, with its standard error over prompts."""
        return mean_scores(prompts, verdicts, {"brightness": "reward"})
