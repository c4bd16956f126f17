"""GenEval as a task: does the picture show the objects, counts, colours and relations of the prompt?"""

from collections.abc import Sequence
from functools import cached_property
from types import MappingProxyType

import numpy as np
import pandas as pd

from evaluators.geneval import prompts as geneval
from evaluators.geneval.evaluate import PROTOCOL, detector, summarise, verdicts
from star.tasks import Prompt, Score
from star.tasks.core_words import core_spans

VOCABULARIES = {"mini": geneval.MINI, "paper": geneval.OFFICIAL}
TRAINING_PROMPTS = {"mini": 4_000, "paper": 50_000}
TRAINING_SEED = 0


class Task:
    """Training prompts in Flow-GRPO's mix, GenEval's own test prompts; the reward is the continuous score."""

    name = "geneval"
    primary = "geneval_official_macro"
    paired = MappingProxyType({"correct": "official macro", "strict": "strict macro", "score": "continuous macro"})

    def __init__(self, engine: str, scale: str) -> None:
        self.detector = detector(engine)
        self.protocol = f"{PROTOCOL}/{self.detector.name}"
        self.scale = scale
        self.vocabulary = VOCABULARIES[scale]

    @cached_property
    def train(self) -> list[Prompt]:
        records = geneval.training(self.vocabulary, TRAINING_PROMPTS[self.scale], TRAINING_SEED)
        return [_prompt(record) for record in records]

    @cached_property
    def test(self) -> list[Prompt]:
        return [_prompt(record) for record in geneval.generate(self.vocabulary)]

    def judge(self, prompts: Sequence[Prompt], images: Sequence[np.ndarray]) -> list[dict]:
        results = verdicts([prompt.target for prompt in prompts], images, self.detector)
        return [
            {"stratum": prompt.target["tag"], "reward": verdict.score, **vars(verdict)}
            for prompt, verdict in zip(prompts, results, strict=True)
        ]

    def summarise(self, prompts: Sequence[Prompt], verdicts: Sequence[dict]) -> list[Score]:
        rows = pd.DataFrame(verdicts).assign(
            tag=[prompt.target["tag"] for prompt in prompts],
            prompt=[prompt.text for prompt in prompts],
            protocol=self.protocol,
        )
        return [
            Score(row["metric"], row["value"], _known(row["stderr"]), row["images"], row["prompts"])
            for row in summarise(rows).to_dict("records")
        ]


def _known(value: float) -> float | None:
    return None if np.isnan(value) else value


def _prompt(record: geneval.Record) -> Prompt:
    return Prompt(record["prompt"], tuple(core_spans("geneval", record["prompt"], record)), record)
