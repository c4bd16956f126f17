"""OCR as a task: does the picture show the text that the prompt quotes?"""

from collections.abc import Callable, Sequence
from functools import cached_property
from types import MappingProxyType

import numpy as np

from evaluators.ocr.evaluate import METRICS, engine, protocol, submit
from evaluators.ocr.pool import Pool
from star.tasks import Prompt, Score, mean_scores, sign_words
from star.tasks.core_words import core_spans
from star.tasks.prompt_files import load_prompts


class Task:
    """At the mini scale, signs whose test words no training has seen; at the paper's, Flow-GRPO's prompts."""

    name = "ocr"
    primary = "ocr_accuracy"
    paired = MappingProxyType({"reward": "accuracy", "exact": "exact"})

    def __init__(self, engine_name: str, scale: str) -> None:
        self.pool = Pool(engine(engine_name))
        self.protocol = protocol(self.pool.engine)
        self.scale = scale

    @cached_property
    def train(self) -> list[Prompt]:
        return self._prompts("train", sign_words.TRAIN_WORDS)

    @cached_property
    def test(self) -> list[Prompt]:
        return self._prompts("test", sorted(sign_words.TEST_WORDS))

    def judge(self, prompts: Sequence[Prompt], images: Sequence[np.ndarray]) -> list[dict]:
        return self.submit(prompts, images)()

    def submit(self, prompts: Sequence[Prompt], images: Sequence[np.ndarray]) -> Callable[[], list[dict]]:
        """Start to judge images, beside what comes next; the returned function waits for what :meth:`judge` gives."""
        verdicts = submit([prompt.text for prompt in prompts], images, self.pool)
        return lambda: [{"stratum": "all", **verdict} for verdict in verdicts()]

    def summarise(self, prompts: Sequence[Prompt], verdicts: Sequence[dict]) -> list[Score]:
        return mean_scores(prompts, verdicts, METRICS)

    def _prompts(self, split: str, words: Sequence[str]) -> list[Prompt]:
        texts = map(sign_words.prompt, words) if self.scale == "mini" else load_prompts("ocr", split)
        return [Prompt(text, tuple(core_spans("ocr", text))) for text in texts]
