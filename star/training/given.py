"""Inputs of a run that may change while its settings stay the same: a base model in a folder, and user-defined prompts."""

from collections.abc import Mapping
from typing import Any

from star.common.errors import UserError
from star.config import Config, config_hash
from star.models.sources import fingerprint
from star.tasks import Task


def given(config: Config, task: Task) -> dict[str, str]:
    """Digests of the ``model`` and the ``prompts``; empty for those that ship with this package, which settings identify.

    Args:
        config: the settings.
        task: the configured one.
    """
    path = config.model.path
    return {"model": fingerprint(path) if path else "", "prompts": prompts_digest(task) if config.task.prompts else ""}


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
        ("prompts", f"task.prompts={config.task.prompts} gives other prompts"),
    ):
        if known.get(name, now[name]) != now[name]:
            raise UserError(f"{what} than when {begun}")


def prompts_digest(task: Task) -> str:
    """A digest of a task's texts, in their order, and of the core words of those that are trained on."""
    spans = [[int(end) for span in prompt.spans for end in span] for prompt in task.train]
    texts = [[prompt.text for prompt in prompts] for prompts in (task.train, task.test)]
    return config_hash({"texts": texts, "spans": spans})
