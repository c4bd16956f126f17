"""A task to check measurements, in the mini world only: one or two objects without a colour, the more vivid the better."""

from evaluators.geneval import prompts as geneval
from star.common.errors import UserError
from star.tasks import Prompt
from star.tasks.geneval import prompt_of

EVALUATOR = "vivid"
TRAINING_PROMPTS, TRAINING_SEED = 4_000, 2
PAIRS = {"two_object": 1}


def train(scale: str) -> list[Prompt]:
    """Every second object, since GenEval's test has all eight, and every pair that it leaves for training; each once."""
    _check(scale)
    pairs = geneval.training(geneval.MINI, TRAINING_PROMPTS, TRAINING_SEED, PAIRS)
    single = [geneval.single_object(name) for name in geneval.MINI.names[1::2]]
    return [prompt_of(record) for record in {record["prompt"]: record for record in (*single, *pairs)}.values()]


def test(scale: str) -> list[Prompt]:
    """The other objects, and GenEval's test prompts of two objects."""
    _check(scale)
    pairs = [record for record in geneval.generate(geneval.MINI) if record["tag"] in PAIRS]
    single = [geneval.single_object(name) for name in geneval.MINI.names[::2]]
    return [prompt_of(record) for record in (*single, *pairs)]


def _check(scale: str) -> None:
    if scale != "mini":
        raise UserError(f"task=vivid is of the mini world, and has no prompts for scale={scale}; use scale=mini")
