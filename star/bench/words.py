"""The words that measurements share, for arms and weights, and what identifies a measurement."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from star import config as settings
from star.common.errors import UserError
from star.common.files import sha256
from star.common.plugins import import_path, is_path
from star.config import Config
from star.method.arms import ARMS, REFERENCE
from star.records.folder import INITIAL
from star.tasks import Task
from star.training.folder import RunFolder
from star.training.given import given

COMMON = "star"
"""The arm whose settings draw the rollouts: they capture relevance, which every arm's maps start from."""


def parse_arms(value: str) -> tuple[str, ...]:
    """The arms of ``arms=A,B``, each once.

    Raises:
        UserError: there is no such arm, or the arm that all are compared with is missing.
    """
    arms = tuple(dict.fromkeys(value.split(",")))
    for arm in arms:
        name, *own = arm.split("@")
        if name not in ARMS and not is_path(name):
            known = ", ".join(ARMS)
            raise UserError(f"arms={value}: no arm {arm!r}; there are: {known}, and functions as my_module:my_map")
        if (wrong := next((part for part in own if "=" not in part[1:]), None)) is not None:
            raise UserError(f"arms={value}: {arm!r} has {wrong!r} behind '@'; write a setting of the method, as star@mix=1")
    if REFERENCE not in arms:
        raise UserError(f"arms={value}: {REFERENCE} is missing, which all are compared with")
    return arms


def arm_words(arm: str) -> list[str]:
    """The settings of an arm that is named as in ``arms=``."""
    name, *own = arm.split("@")
    made = [f"method={name}"] if name in ARMS else [f"method={COMMON}", "method.name=own", f"method.arm={name}"]
    return made + [f"method.{setting}" for setting in own]


def file_name(arm: str) -> str:
    """The name of an arm's files; for a user's own arm it has a digest of the module's source, which may change."""
    name = arm.replace(":", ".")
    path = arm.partition("@")[0]
    if not is_path(path):
        return name
    module = sys.modules[import_path(path, "arms").__module__]
    return f"{name}-{sha256(Path(str(module.__file__)))[:8]}"


def refuse_runs(overrides: Sequence[str], why: str) -> None:
    """Refuse a method or a run folder in the settings of a command that makes no run.

    Args:
        overrides: the settings.
        why: the reason, for the error message.

    Raises:
        UserError: there is one.
    """
    for word in overrides:
        if word.startswith(("method=", "run=")):
            raise UserError(f"{word}: {why}")


def weights_file(name: str) -> Path:
    """The weights file that a word names: the file itself, or a run folder's final weights, else its newest checkpoint's.

    The final weights are the run's average; a checkpoint's are those that the run goes on from.

    Raises:
        UserError: there are none.
    """
    path = Path(name)
    folders = [path, path / "final", *reversed(RunFolder(path).checkpoints())]
    found = next((file for file in (path, *(f / "trained.safetensors" for f in folders)) if file.is_file()), None)
    if found is None:
        raise UserError(f"weights={name}: there is no trained.safetensors; name a run folder, a checkpoint or a file")
    return found


def weights_label(file: Path | None) -> str:
    """The name of a weights file in tables; None stands for the initial weights."""
    return os.path.relpath(file) if file else INITIAL


def identity(config: Config, task: Task, weights: Path | None) -> dict:
    """What a measurement depends on, except arm and epoch; with digests of a model or prompts that are not shipped."""
    known = settings.identity(config)
    known["method"] = {key: value for key, value in known["method"].items() if key not in ("name", "arm")}
    own = {name: digest for name, digest in given(config, task).items() if digest}
    return known | {"weights": sha256(weights) if weights else INITIAL} | ({"given": own} if own else {})
