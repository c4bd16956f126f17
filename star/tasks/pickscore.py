"""Prompts for pictures that people like: one or two shapes at the mini scale, Pick-a-Pic's prompts at the paper's."""

from evaluators.geneval import prompts as geneval
from star.tasks import Prompt
from star.tasks.core_words import spans_if_any
from star.tasks.prompt_files import load_prompts

EVALUATOR = "pickscore"

# What the mini base can draw; the numbers are shares of the training prompts. Each of the eight single objects is among
# GenEval's test prompts, so none is left for training.
MINI_MIX = {"single_object": 0, "colors": 1, "two_object": 1, "color_attr": 2}
TRAINING_PROMPTS = 4_000
TRAINING_SEED = 1


def train(scale: str) -> list[Prompt]:
    """The training prompts that have core words: without any, STAR could not tell where to look."""
    if scale == "mini":
        prompts = [_of(record) for record in geneval.training(geneval.MINI, TRAINING_PROMPTS, TRAINING_SEED, MINI_MIX)]
    else:
        prompts = [_prompt(text) for text in load_prompts("pickscore", "train")]
    return [prompt for prompt in prompts if prompt.spans]


def test(scale: str) -> list[Prompt]:
    """GenEval's test prompts of the kinds in the training mix, or the lines of Flow-GRPO's file."""
    if scale == "mini":
        return [_of(record) for record in geneval.generate(geneval.MINI) if record["tag"] in MINI_MIX]
    return [_prompt(text) for text in load_prompts("pickscore", "test")]


def _of(record: geneval.Record) -> Prompt:
    """With the record, so that GenEval can judge the images too."""
    return _prompt(record["prompt"], record)


def _prompt(text: str, record: geneval.Record | None = None) -> Prompt:
    return Prompt(text, tuple(spans_if_any("pickscore", text)), record or {})
