"""GenEval's prompts: training prompts in Flow-GRPO's mix, and the benchmark's own for the test."""

from evaluators.geneval import prompts as geneval
from star.tasks import Prompt
from star.tasks.core_words import of_record

EVALUATOR = "geneval"
VOCABULARIES = {"mini": geneval.MINI, "paper": geneval.OFFICIAL}
TRAINING_PROMPTS = {"mini": 4_000, "paper": 50_000}
TRAINING_SEED = 0
DISTINCT = ("paper",)
"""The scales whose training prompts are distinct. At the mini scale some repeat by chance, as they did in all its runs."""


def train(scale: str) -> list[Prompt]:
    """The training prompts, drawn once with one seed for all runs."""
    records = geneval.training(VOCABULARIES[scale], TRAINING_PROMPTS[scale], TRAINING_SEED, distinct=scale in DISTINCT)
    return [prompt_of(record) for record in records]


def test(scale: str) -> list[Prompt]:
    """All prompts of the benchmark."""
    return [prompt_of(record) for record in geneval.generate(VOCABULARIES[scale])]


def prompt_of(record: geneval.Record) -> Prompt:
    """The prompt of a record, with its core words."""
    return Prompt(record["prompt"], tuple(of_record(record["prompt"], record)), record)
