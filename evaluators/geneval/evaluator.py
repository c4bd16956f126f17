"""GenEval as an evaluator: does the picture show the objects, counts, colours and relations of the prompt's record?"""

from collections.abc import Callable, Sequence
from types import MappingProxyType

import numpy as np
import pandas as pd

from evaluators.geneval import evaluate
from evaluators.interface import Asked, Score


class GenEval:
    """Judges images by a detector (see :class:`evaluators.interface.Evaluator`); the reward is the continuous score."""

    primary = "geneval_official_macro"
    paired = MappingProxyType({"correct": "official macro", "strict": "strict macro", "score": "continuous macro"})

    def __init__(self, engine: str) -> None:
        self.detector = evaluate.detector(engine)

    @property
    def protocol(self) -> str:
        """Name and version, with the detector."""
        return evaluate.protocol(self.detector)

    def lacks(self, prompt: Asked) -> str:
        """A GenEval record that can be judged, if the prompt has none."""
        return evaluate.lacks(prompt, self.detector)

    def submit(self, prompts: Sequence[Asked], images: Sequence[np.ndarray]) -> Callable[[], list[dict]]:
        """The returned function does the work, since detectors compute on the same device as the model."""
        return lambda: self._judge(prompts, images)

    def places(self, prompts: Sequence[Asked], images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The objects that count for each record, bool (H, W); see :func:`evaluators.geneval.evaluate.places`."""
        return evaluate.places([dict(prompt.target) for prompt in prompts], images, self.detector)

    def summarise(self, prompts: Sequence[Asked], verdicts: Sequence[dict]) -> list[Score]:
        """GenEval's means by tag, macro and micro; see :func:`evaluators.geneval.evaluate.summarise`."""
        rows = pd.DataFrame(verdicts).assign(
            tag=[prompt.target["tag"] for prompt in prompts],
            prompt=[prompt.text for prompt in prompts],
            protocol=self.protocol,
        )
        return evaluate.summarise(rows)

    def _judge(self, prompts: Sequence[Asked], images: Sequence[np.ndarray]) -> list[dict]:
        results = evaluate.verdicts([dict(prompt.target) for prompt in prompts], images, self.detector)
        return [
            {"stratum": prompt.target["tag"], "reward": verdict.score, **vars(verdict)}
            for prompt, verdict in zip(prompts, results, strict=True)
        ]
