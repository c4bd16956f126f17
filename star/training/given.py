"""Inputs of a run that may change while its settings stay the same: a base model in a folder, and prompts of one's own or in
files."""

from collections.abc import Mapping
from typing import Any

from star.common.errors import UserError
from star.config import Config, config_hash
from star.models.sources import fingerprint
from star.tasks import Task
from star.tasks.prompt_files import FILES, ROOT


def given(config: Config, task: Task, training: bool = True) -> dict[str, str]:
    """Digests of the ``model`` and the ``prompts``; empty for those that ship with this package, which settings identify.

    Args:
        config: the settings.
        task: the configured one.
        training: whether its training prompts are used; the published files of held-out ones are known by their digests.
    """
    path = config.model.path
    return {
        "model": fingerprint(path) if path else "",
        "prompts": prompts_digest(task) if prompts_may_change(config, training) else "",
    }


def prompts_may_change(config: Config, training: bool = True) -> bool:
    """Whether prompts do not ship with this package; ``training`` as for :func:`given`."""
    return bool(config.task.prompts) or (training and config.scale == "paper" and config.task.name in FILES)


def prompts_digest(task: Task) -> str:
    """A digest of a task's texts, in their order, and of the core words of those that are trained on."""
    spans = [[int(end) for span in prompt.spans for end in span] for prompt in task.train]
    texts = [[prompt.text for prompt in prompts] for prompts in (task.train, task.test)]
    return config_hash({"texts": texts, "spans": spans})


def origin(config: Config) -> str:
    """Where prompts come from that do not ship, in words for a message."""
    if config.task.prompts:
        return f"task.prompts={config.task.prompts} gives"
    return f"{ROOT / config.task.name / 'train.txt'} has"


def check_given(config: Config, known: Mapping[str, Any], now: Mapping[str, str], begun: str) -> None:
    """Refuse to go on with, or to measure, a base model or prompts other than those recorded.

    Args:
        config: the settings.
        known: the digests recorded before, among other things; one that is missing is not checked.
        now: the current digests, see :func:`given`.
        begun: what was done before and how to do it anew: ``than when DONE; put that back, or ANEW``.

    Raises:
        UserError: one of them has changed.
    """
    for name, what in (
        ("model", f"model.path={config.model.path} is another model"),
        ("prompts", f"{origin(config)} other prompts"),
    ):
        if known.get(name, now[name]) != now[name]:
            raise UserError(f"{what} than when {begun}")
