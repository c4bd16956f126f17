"""What is trained for: prompts with their core words, and the evaluator that judges their images.

A task is a module here, found by its name. It has ``EVALUATOR``, the name of its evaluator, and the functions
``train(scale)`` and ``test(scale)``, which give lists of :class:`Prompt`; no test prompt is among the training prompts.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from importlib import import_module
from types import ModuleType

import numpy as np

from evaluators import registry
from evaluators.interface import Evaluator, Score, try_out
from star.common.errors import UserError
from star.common.plugins import is_path
from star.config import Config, options
from star.method.tokens import Span


@dataclass(frozen=True)
class Prompt:
    """A text, the character spans of its core words, and what evaluators need to know of it beside the text."""

    text: str
    spans: tuple[Span, ...]
    target: dict = field(default_factory=dict)


Prompts = Callable[[], list[Prompt]]


class Task:
    """Prompts, and what judges their images.

    Attributes:
        name: in settings and results.
        evaluator: what judges its images.
    """

    def __init__(self, name: str, evaluator: Evaluator, train: Prompts, test: Prompts) -> None:
        """
        Args:
            name: of the task.
            evaluator: what judges its images.
            train, test: give the prompts when they are first asked for.
        """
        self.name, self.evaluator = name, evaluator
        self._train, self._test = train, test

    @cached_property
    def train(self) -> list[Prompt]:
        """The training prompts."""
        return self._train()

    @cached_property
    def test(self) -> list[Prompt]:
        """The held-out prompts."""
        return self._test()

    @property
    def protocol(self) -> str:
        """The evaluator's."""
        return self.evaluator.protocol

    @property
    def primary(self) -> str:
        """The metric that methods are compared by."""
        return self.evaluator.primary

    @property
    def paired(self) -> Mapping[str, str]:
        """What verdicts hold that paired comparisons use, name -> label, the main one first."""
        return self.evaluator.paired

    def submit(self, prompts: Sequence[Prompt], images: Sequence[np.ndarray]) -> Callable[[], list[dict]]:
        """Start to judge images; see :meth:`evaluators.interface.Evaluator.submit`."""
        return self.evaluator.submit(prompts, images)

    def judge(self, prompts: Sequence[Prompt], images: Sequence[np.ndarray]) -> list[dict]:
        """The verdicts on images, at once."""
        return self.submit(prompts, images)()

    def summarise(self, prompts: Sequence[Prompt], verdicts: Sequence[dict]) -> list[Score]:
        """All metrics of an evaluation; see :meth:`evaluators.interface.Evaluator.summarise`."""
        return self.evaluator.summarise(prompts, verdicts)


def load_task(config: Config, name: str, evaluator: Evaluator | None = None) -> Task:
    """The task of a name with the configured evaluator, or with a given one.

    Raises:
        UserError: there is no such task, its evaluator lacks weights or packages, or cannot judge its prompts.
    """
    module = _find(name)
    evaluator = evaluator or registry.create(module.EVALUATOR, config.evaluators[name])
    return Task(name, evaluator, partial(module.train, config.scale), partial(module.test, config.scale))


def load_rewards(config: Config, task: Task) -> dict[str, Evaluator]:
    """What judges the images of a task beside its own evaluator, by the names in ``rewards.others``: those of other tasks,
    whose evaluators they are, and paths.

    Raises:
        UserError: one lacks weights or packages, the task's prompts lack what it needs, or one of somebody's own does not
            judge as it must.
    """
    found = {
        name: registry.create(_find(name).EVALUATOR if name in options("task") else name, config.evaluators.get(name))
        for name in config.rewards.others
    }
    for name, evaluator in {task.name: task.evaluator, **found}.items():
        setting = f"rewards.others.{name}" if name in found else f"evaluators.{name}"
        for prompt in task.train:
            if lack := evaluator.lacks(prompt):
                raise UserError(
                    f"{setting} cannot judge images of task={task.name}: the prompt {prompt.text!r} has no {lack}; choose "
                    "another reward or task"
                )
        if is_path(name) or is_path(config.evaluators.get(name, "")):
            try_out(setting, evaluator, task.train[:2], config.model.resolution)
    return found


def try_evaluator(config: Config, task: Task) -> None:
    """See that a task's evaluator judges as it must, if it is a class of somebody's own.

    Raises:
        UserError: it does not.
    """
    if is_path(config.evaluators.get(task.name, "")):
        asked = [prompt for prompt in task.test[:2] if not task.evaluator.lacks(prompt)]
        try_out(f"evaluators.{task.name}", task.evaluator, asked, config.model.resolution)


def paired_scores(task: str) -> dict[str, str]:
    """The scores that a task's images are compared by, column -> label, the main one first; none for an unknown task."""
    return dict(registry.find(_find(task).EVALUATOR).paired) if task in options("task") else {}


def primary(task: str) -> str | None:
    """The metric that methods are compared by, or None for an unknown task."""
    return registry.find(_find(task).EVALUATOR).primary if task in options("task") else None


def _find(name: str) -> ModuleType:
    """The module of a task."""
    if name not in options("task"):
        raise UserError(f"no task {name!r}; there are: {', '.join(options('task'))}")
    return import_module(f"star.tasks.{name}")
