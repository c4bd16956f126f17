"""What is rewarded. One module per task, found by its name; each has a class ``Task`` with the interface below."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from typing import NamedTuple, Protocol

import numpy as np

from star.core_words import Span
from star.errors import UserError


@dataclass(frozen=True)
class Prompt:
    """A text, the character spans of its core words, and what the evaluator needs to know of it."""

    text: str
    spans: tuple[Span, ...]
    target: dict = field(default_factory=dict)


class Score(NamedTuple):
    """One number of an evaluation, as result files hold it."""

    metric: str
    value: float
    stderr: float | None
    images: int
    prompts: int


class Task(Protocol):
    """A task: prompts and a reward.

    Attributes:
        protocol: name and version of the evaluation, with its engine.
        primary: the metric that methods are compared by.
        paired: what :meth:`judge` gives that paired comparisons use, name -> label.
        train, test: prompts; no test prompt is among the training prompts.
    """

    protocol: str
    primary: str
    paired: Mapping[str, str]
    train: Sequence[Prompt]
    test: Sequence[Prompt]

    def judge(self, prompts: Sequence[Prompt], images: Sequence[np.ndarray]) -> list[dict]:
        """What each image is worth: plain values by name, among them ``reward``, the training reward, and ``stratum``,
        within which comparisons average before they average over strata.

        Args:
            prompts: what image ``i`` was made from.
            images: uint8 (H, W, 3) in RGB, as many.
        """
        ...

    def summarise(self, prompts: Sequence[Prompt], verdicts: Sequence[dict]) -> list[Score]:
        """All metrics of an evaluation from what :meth:`judge` gave; a prompt may have many images, in any order."""
        ...


def load(name: str, engine: str, scale: str) -> Task:
    """The task of a name.

    Args:
        name: of the module in this package.
        engine: which evaluator, from the settings ``evaluators``.
        scale: ``mini`` or ``paper``: which prompts.

    Raises:
        UserError: what the evaluator lacks, e.g. weights.
    """
    if find_spec(f"star.tasks.{name}") is None:
        raise UserError(f"task {name!r} has no module star/tasks/{name}.py")
    return import_module(f"star.tasks.{name}").Task(engine, scale)
