"""GenEval's prompts: for training in Flow-GRPO's mix, for the test GenEval's own."""

from evaluators.geneval import prompts as geneval
from star.tasks import Prompt
from star.tasks.core_words import core_spans

EVALUATOR = "geneval"
VOCABULARIES = {"mini": geneval.MINI, "paper": geneval.OFFICIAL}
TRAINING_PROMPTS = {"mini": 4_000, "paper": 50_000}
TRAINING_SEED = 0
DISTINCT = ("paper",)
"""Where prompts do not repeat by chance. The mini scale's do: all its runs have drawn them so."""


def train(scale: str) -> list[Prompt]:
    """Drawn once, with one seed for everybody."""
    records = geneval.training(VOCABULARIES[scale], TRAINING_PROMPTS[scale], TRAINING_SEED, distinct=scale in DISTINCT)
    return [_prompt(record) for record in records]


def test(scale: str) -> list[Prompt]:
    """All of the benchmark."""
    return [_prompt(record) for record in geneval.generate(VOCABULARIES[scale])]


def _prompt(record: geneval.Record) -> Prompt:
    return Prompt(record["prompt"], tuple(core_spans("geneval", record["prompt"], record)), record)
