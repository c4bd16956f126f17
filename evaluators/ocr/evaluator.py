"""Text rendering as an evaluator: does the picture show the text that the prompt quotes?"""

from collections.abc import Callable, Sequence
from types import MappingProxyType

import numpy as np

from evaluators.interface import Asked, Score, mean_scores
from evaluators.ocr.evaluate import METRICS, engine, protocol, submit
from evaluators.ocr.pool import Pool
from evaluators.ocr.reward import target_span
from star.common.errors import UserError


class TextRendering:
    """Reads images in worker processes (see :class:`evaluators.interface.Evaluator`)."""

    primary = "ocr_accuracy"
    paired = MappingProxyType({"reward": "accuracy", "exact": "exact"})

    def __init__(self, engine_name: str) -> None:
        self.pool = Pool(engine(engine_name))

    @property
    def protocol(self) -> str:
        """Name and version, with the engine."""
        return protocol(self.pool.engine)

    def lacks(self, prompt: Asked) -> str:
        """The quoted text, where there is none."""
        try:
            target_span(prompt.text)
        except UserError:
            return "text in double quotes"
        return ""

    def submit(self, prompts: Sequence[Asked], images: Sequence[np.ndarray]) -> Callable[[], list[dict]]:
        """Starts to read in worker processes; the returned function waits for them."""
        verdicts = submit([prompt.text for prompt in prompts], images, self.pool)
        return lambda: [{"stratum": "all", **verdict} for verdict in verdicts()]

    def summarise(self, prompts: Sequence[Asked], verdicts: Sequence[dict]) -> list[Score]:
        """Mean reward (the published accuracy) and share of exact readings."""
        return mean_scores(prompts, verdicts, METRICS)
