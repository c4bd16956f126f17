"""An evaluator for measurements in which judging plays no part."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from evaluators.interface import Asked, Score


class Reddest:
    """Needs nothing and takes no time: the redder, the better."""

    protocol = "none"
    primary = "reward"
    paired: Mapping[str, str] = MappingProxyType({})

    def lacks(self, prompt: Asked) -> str:
        """Nothing."""
        return ""

    def submit(self, prompts: Sequence[Asked], images: Sequence[np.ndarray]) -> Callable[[], list[dict]]:
        """The mean of the red channel, in [0, 1], computed when the verdicts are asked for."""
        return lambda: [{"reward": float(image[..., 0].mean()) / 255} for image in images]

    def summarise(self, prompts: Sequence[Asked], verdicts: Sequence[dict]) -> list[Score]:
        """Nothing: these measurements evaluate no model."""
        return []
