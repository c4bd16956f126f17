"""Tasks to train for: prompts with their core words, and the evaluator that judges their images.

A task is a module here, found by its name. It has ``EVALUATOR``, the name of its evaluator, and the functions
``train(scale)`` and ``test(scale)``, which return lists of :class:`Prompt`; no test prompt is among the training prompts. Your
own task is a class, found by the path in ``task.prompts``: :class:`OwnTask`.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from importlib import import_module
from operator import index
from typing import Protocol

from evaluators import registry
from evaluators.interface import Evaluator, try_judge
from star.common.errors import UserError, one_line, short
from star.common.files import fault_of_text
from star.common.plugins import import_path, is_path
from star.config import Config, options
from star.method.choices import Span


@dataclass(frozen=True)
class Prompt:
    """A text, the character spans of its core words, and what evaluators need to know besides the text."""

    text: str
    spans: tuple[Span, ...]
    target: dict = field(default_factory=dict)


Prompts = Callable[[], list[Prompt]]


class OwnTask(Protocol):
    """The class that ``task.prompts`` names; it is instantiated without arguments.

    Every process of a run asks for the prompts, and again when the run is resumed: the lists must be the same each time.

    Attributes:
        evaluator: the name of a built-in one; ``evaluators.NAME`` sets its engine, or the path of a class to judge instead.
    """

    evaluator: str

    def train(self, scale: str) -> list[Prompt]:
        """The training prompts, each with a core word."""
        ...

    def test(self, scale: str) -> list[Prompt]:
        """The held-out prompts, none of which is a training prompt."""
        ...


@dataclass(frozen=True)
class _Source:
    """Where a task's prompts come from, and what judges their images."""

    evaluator: str
    train: Callable[[str], list[Prompt]]
    test: Callable[[str], list[Prompt]]


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


def load_task(config: Config, name: str, evaluator: Evaluator | None = None) -> Task:
    """The task of this name, with the configured evaluator or the given one.

    Raises:
        UserError: there is no such task, its evaluator lacks weights or packages, or cannot judge its prompts.
    """
    source = _source(config, name)
    evaluator = evaluator or registry.create(source.evaluator, config.evaluators[name])
    task = Task(name, evaluator, partial(source.train, config.scale), partial(source.test, config.scale))
    if config.task.prompts and name == config.task.name:
        cure = f"put it into {config.task.prompts}'s prompts, by their target or text, or name another evaluator"
        _check_judged(f"evaluators.{name}", evaluator, name, [*task.train, *task.test], cure)
    return task


def held_out_prompts(config: Config, name: str) -> list[Prompt]:
    """The held-out prompts of the task of this name, for which no evaluator is loaded.

    Raises:
        UserError: there is no such task, or it gives no prompts.
    """
    return _source(config, name).test(config.scale)


def load_rewards(config: Config, task: Task) -> dict[str, Evaluator]:
    """The evaluators besides a task's own, by their names in ``rewards.others``: the name of the evaluator's task, or a path.

    Raises:
        UserError: one lacks weights or packages, the task's prompts lack what it needs, or a user's own evaluator does not
            judge as it must.
    """
    found = {
        name: registry.create(_find(name).evaluator if name in options("task") else name, config.evaluators.get(name))
        for name in config.rewards.others
    }
    for name, evaluator in {task.name: task.evaluator, **found}.items():
        setting = f"rewards.others.{name}" if name in found else f"evaluators.{name}"
        _check_judged(setting, evaluator, task.name, task.train, "choose another reward or task")
        if name in found or is_path(config.evaluators.get(name, "")):
            try_judge(setting, evaluator, task.train[:2], config.model.resolution)
    return found


def try_evaluator(config: Config, task: Task) -> None:
    """Check, before hours of training, that a task's held-out prompts are there and that its evaluator judges them.

    Raises:
        UserError: they are not there, or it does not judge them.
    """
    setting = f"evaluators.{task.name}"
    _check_judged(setting, task.evaluator, task.name, task.test, "name another evaluator")
    try_judge(setting, task.evaluator, task.test[:2], config.model.resolution)


def _check_judged(setting: str, evaluator: Evaluator, task: str, prompts: Sequence[Prompt], cure: str) -> None:
    """Refuse prompts whose images an evaluator cannot judge.

    Args:
        setting: the one that names the evaluator.
        evaluator: what is to judge.
        task: whose prompts they are.
        prompts: those to check.
        cure: what the user can do about such a prompt.
    """
    for prompt in prompts:
        if lack := evaluator.lacks(prompt):
            raise UserError(f"{setting} cannot judge images of task={task}: the prompt {prompt.text!r} has no {lack}; {cure}")


def main_metric(task: str, measured: Collection[str]) -> str | None:
    """The metric that a task's methods are compared by, of those that were measured: its evaluator's main one.

    If only one was measured, it is that one. Otherwise, on a user's own task, any built-in evaluator's main metric counts.
    None if no such metric was measured.
    """
    if len(measured) == 1:
        return next(iter(measured))
    known = [registry.find(_find(task).evaluator).primary] if task in options("task") else _by_metric()
    return next((metric for metric in known if metric in measured), None)


def paired_scores(metric: str | None) -> dict[str, str]:
    """What images are compared by when methods are compared by ``metric``, column -> label, the main one first.
    The scores of the built-in evaluator with this main metric, or else the reward, whose unit may not be the metric's."""
    evaluator = _by_metric().get(metric or "")
    return dict(evaluator.paired) if evaluator else {"reward": "reward"}


def averaged(metric: str) -> str | None:
    """The column of verdicts that a built-in evaluator's main metric is the mean of, by stratum first; None for others."""
    evaluator = _by_metric().get(metric)
    return next(iter(evaluator.paired)) if evaluator else None


def _by_metric() -> dict[str, type[Evaluator]]:
    """The built-in evaluators by their main metrics."""
    return {evaluator.primary: evaluator for evaluator in map(registry.find, registry.EVALUATORS)}


def _source(config: Config, name: str) -> _Source:
    """The prompts of the task of this name, the user's own if the settings say so, and the evaluator's name."""
    own = config.task.prompts if name == config.task.name else None
    return _own(own, config.scale) if own else _find(name)


def _find(name: str) -> _Source:
    """The built-in task of this name."""
    if name not in options("task"):
        raise UserError(f"no task {name!r}; there are: {', '.join(options('task'))}")
    module = import_module(f"star.tasks.{name}")
    return _Source(module.EVALUATOR, module.train, module.test)


def _own(path: str, scale: str) -> _Source:
    """The task of a user's own class, whose prompts are checked before anything else is done.

    Raises:
        UserError: there is no such class, or it is not what :class:`OwnTask` says.
    """
    setting = f"task.prompts={path}"
    made: OwnTask = import_path(path, setting)
    try:
        task = made()  # type: ignore[operator]
        train, test = task.train(scale), task.test(scale)
        evaluator = task.evaluator
    except Exception as error:
        raise UserError(f"{setting} gives no prompts: {type(error).__name__}: {one_line(error)}") from error
    if evaluator not in list(registry.EVALUATORS):  # looking up an unhashable value in the dict would be an error
        raise UserError(
            f"{setting}: evaluator must be {', '.join(registry.EVALUATORS)}, not {evaluator!r}; a class of your own judges "
            "instead by +evaluators.NAME=my_module:MyReward"
        )
    check_prompts(setting, scale, train, test)
    return _Source(evaluator, lambda scale: train, lambda scale: test)


def check_prompts(setting: str, scale: str, train: list[Prompt], test: list[Prompt]) -> None:
    """Check a task's lists of prompts; those of a user's own task may hold anything.

    Args:
        setting: what error messages call the task.
        scale: that the lists were asked for.
        train, test: the lists.

    Raises:
        UserError: a prompt is in both lists, cannot be learnt from or cannot be used at all.
    """
    for what, prompts in {"train": train, "test": test}.items():
        if not (isinstance(prompts, list) and prompts and all(isinstance(prompt, Prompt) for prompt in prompts)):
            raise UserError(f"{setting}: {what}({scale!r}) must give a list of star.tasks.Prompt, and at least one")
    for what, prompts in {"train": train, "test": test}.items():
        for number, prompt in enumerate(prompts, 1):
            if fault := _fault(prompt, learnt=prompts is train):
                raise UserError(f"{setting}: prompt {number} of {what}({scale!r}) {fault}")
    if shared := {_spaced(prompt) for prompt in train} & {_spaced(prompt) for prompt in test}:
        raise UserError(f"{setting}: {min(shared)!r} is a training prompt and a test prompt; a score of it would say nothing")


def _spaced(prompt: Prompt) -> str:
    """A prompt's text as tokenizers see it: they make one space of any white space."""
    return " ".join(prompt.text.split())


def _fault(prompt: Prompt, learnt: bool) -> str:
    """What keeps a user's prompt from being used, in words; empty if nothing does.

    Args:
        prompt: of any types: files with empty cells give numbers for texts.
        learnt: whether it is trained on, and so needs core words.
    """
    text = prompt.text
    if not isinstance(text, str):
        return f"has {text!r} for its text, which is none"
    if not text.strip():
        return "is empty; leave it out"
    if fault := fault_of_text(text):
        return f"is {short(text)!r}: it holds {fault}; read its file in the right encoding and strip its lines"
    if text.startswith("\ufeff"):
        return f"is {short(text)!r}: it begins with a byte order mark; read its file as utf-8-sig"
    if not isinstance(prompt.target, dict):
        return f"is {short(text)!r}: its target must be a dict, not {short(repr(prompt.target))}"
    if not _has_spans(prompt, least=int(learnt)):
        return (
            f"is {short(text)!r}: it needs the spans of its core words, (first, last + 1) of its characters, not "
            f"{short(repr(prompt.spans))}"
        )
    return ""


def _has_spans(prompt: Prompt, least: int) -> bool:
    """Whether a prompt has at least so many spans, all of them within its text."""
    try:
        inside = [0 <= index(start) < index(end) <= len(prompt.text) for start, end in prompt.spans]
    except (TypeError, ValueError):
        return False
    return all(inside) and len(inside) >= least
