"""PickScore as a task: how well would people like the picture for the prompt?"""

from collections.abc import Sequence
from functools import cached_property
from types import MappingProxyType

import numpy as np

from evaluators.geneval import prompts as geneval
from evaluators.pickscore.score import METRICS, engine, judge, protocol
from star.common.errors import UserError
from star.method.tokens import Span
from star.tasks import Prompt, Score, mean_scores
from star.tasks.core_words import core_spans
from star.tasks.prompt_files import load_prompts

REWARD_SCALE = 26
"""Flow-GRPO (arXiv 2505.05470) divides the score by it for training, and only there."""

# What the mini base can draw; the numbers are shares of the training prompts. Each of the eight single objects is among
# GenEval's test prompts, so none is left for training.
MINI_MIX = {"single_object": 0, "colors": 1, "two_object": 1, "color_attr": 2}
TRAINING_PROMPTS = 4_000
TRAINING_SEED = 1


class Task:
    """At the mini scale, prompts about one or two shapes, the test prompts being GenEval's; at the paper's, Pick-a-Pic's.

    The reported score is raw.
    """

    name = "pickscore"
    primary = "pickscore"
    paired = MappingProxyType({"score": "PickScore"})

    def __init__(self, engine_name: str, scale: str) -> None:
        self.scorer = engine(engine_name)
        self.protocol = protocol(self.scorer)
        self.scale = scale

    @cached_property
    def train(self) -> list[Prompt]:
        """Without texts that have no core words: STAR could not tell where to look."""
        if self.scale == "mini":
            texts = _texts(geneval.training(geneval.MINI, TRAINING_PROMPTS, TRAINING_SEED, MINI_MIX))
        else:
            texts = load_prompts("pickscore", "train")
        return [prompt for prompt in map(_prompt, texts) if prompt.spans]

    @cached_property
    def test(self) -> list[Prompt]:
        if self.scale == "mini":
            texts = _texts([record for record in geneval.generate(geneval.MINI) if record["tag"] in MINI_MIX])
        else:
            texts = load_prompts("pickscore", "test")
        return [_prompt(text) for text in texts]

    def judge(self, prompts: Sequence[Prompt], images: Sequence[np.ndarray]) -> list[dict]:
        verdicts = judge([prompt.text for prompt in prompts], images, self.scorer)
        return [{"stratum": "all", "reward": verdict["score"] / REWARD_SCALE, **verdict} for verdict in verdicts]

    def summarise(self, prompts: Sequence[Prompt], verdicts: Sequence[dict]) -> list[Score]:
        return mean_scores(prompts, verdicts, METRICS)


def _texts(records: Sequence[geneval.Record]) -> list[str]:
    return [record["prompt"] for record in records]


def _prompt(text: str) -> Prompt:
    return Prompt(text, tuple(_spans(text)))


def _spans(text: str) -> list[Span]:
    try:
        return core_spans("pickscore", text)
    except UserError:  # nothing but stop words
        return []
