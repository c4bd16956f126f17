"""What is rewarded. One module per task, found by its name; each has a class ``Task`` with the interface below."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from typing import NamedTuple, Protocol

import numpy as np

from evaluators.folder import mean_and_stderr
from star.common.errors import UserError
from star.config import Config
from star.method.tokens import Span


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
        name: the module's.
        protocol: name and version of the evaluation, with its engine.
        primary: the metric that methods are compared by.
        paired: what :meth:`judge` gives that paired comparisons use, name -> label.
        train, test: prompts; no test prompt is among the training prompts.
    """

    name: str
    protocol: str
    primary: str
    paired: Mapping[str, str]
    train: Sequence[Prompt]
    test: Sequence[Prompt]

    def __init__(self, engine: str, scale: str) -> None:
        """
        Args:
            engine: which evaluator, from the settings ``evaluators``.
            scale: ``mini`` or ``paper``: which prompts.

        Raises:
            UserError: what the evaluator lacks, e.g. weights.
        """
        ...

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


def find(name: str) -> type[Task]:
    """The class of the task of a name.

    Raises:
        UserError: there is no such task.
    """
    if find_spec(f"star.tasks.{name}") is None:
        raise UserError(f"task {name!r} has no module star/tasks/{name}.py")
    return import_module(f"star.tasks.{name}").Task


def load_task(config: Config, name: str) -> Task:
    """The task of a name with the configured evaluator."""
    return find(name)(config.evaluators[name], config.scale)


def paired_scores(task: str) -> dict[str, str]:
    """The scores that a task's images are compared by, column -> label, the main one first; none for an unknown task."""
    try:
        return dict(find(task).paired)
    except UserError:
        return {}


def primary(task: str) -> str | None:
    """The metric that methods are compared by, or None for an unknown task."""
    try:
        return find(task).primary
    except UserError:
        return None


def mean_scores(prompts: Sequence[Prompt], verdicts: Sequence[dict], metrics: Mapping[str, str]) -> list[Score]:
    """Means over images, with standard errors over prompts, of ``metrics``: name -> key of what the verdicts hold."""
    texts = [prompt.text for prompt in prompts]
    return [
        Score(metric, *mean_and_stderr([verdict[key] for verdict in verdicts], texts), len(texts), len(set(texts)))
        for metric, key in metrics.items()
    ]


def submit(task: Task, prompts: Sequence[Prompt], images: Sequence[np.ndarray]) -> Callable[[], list[dict]]:
    """Start to judge images: beside what comes next if the task can (it has a method ``submit``), or else when asked.

    Returns:
        A function that gives what :meth:`Task.judge` gives.
    """
    start = getattr(task, "submit", None)
    return start(prompts, images) if start else lambda: task.judge(prompts, images)
