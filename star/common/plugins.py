"""Import paths that users give: ``my_package.my_module:MyClass``, from an installed package or the working directory."""

import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from star.common.errors import Interrupted, RunStopped, UserError, one_line

OURS = ("star", "evaluators", "baselines")
own: set[Path] = set()
"""The files, or for packages the folders, of the modules that users named."""


def is_path(name: str) -> bool:
    """Whether a name is meant as a path to something importable."""
    return re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", name) is not None


def import_path(path: str, setting: str) -> Any:
    """Import what a path such as ``my_package.my_module:MyClass`` names.

    Args:
        path: module and attribute, see :func:`is_path`. What its functions raise is told by :func:`own_errors`.
        setting: where the path comes from, for the error.

    Raises:
        UserError: there is no such module or attribute, or importing it fails.
    """
    module, _, name = path.partition(":")
    if module.endswith(".py"):
        raise UserError(f"{setting}: it is the name of a module, not of its file: {module.removesuffix('.py')}:{name}")
    if (here := str(Path.cwd())) not in sys.path:  # installed commands do not search the working directory
        sys.path.append(here)
    try:
        found = import_module(module)
    except ModuleNotFoundError as error:
        missing = f"{module}.".startswith(f"{error.name}.")  # rather than a module that it imports
        cure = f"install it, or put {module} into the folder where you call star" if missing else f"{module} imports it"
        raise UserError(f"{setting}: there is no module {error.name!r}; {cure}") from None
    except Exception as error:
        raise UserError(f"{setting}: {module} cannot be imported: {type(error).__name__}: {one_line(error)}") from error
    if not hasattr(found, name):
        raise UserError(f"{setting}: the module {module} has no {name!r}")
    if (top := module.partition(".")[0]) not in OURS and (file := getattr(sys.modules[top], "__file__", None)):
        own.add(Path(file).parent if hasattr(sys.modules[top], "__path__") else Path(file))
    return getattr(found, name)


@contextmanager
def own_errors() -> Iterator[None]:
    """Inside, what goes wrong in a module that the user named is told with its place, in one line.

    Raises:
        UserError: in place of an error that has no reason for the user yet.
    """
    try:
        yield
    except (UserError, RunStopped, Interrupted):
        raise
    except Exception as error:
        if place := own_place(error):
            raise UserError(f"{place}: {type(error).__name__}: {one_line(error)}") from error
        raise


def call_own(setting: str, wanted: str, function: Callable[..., Any], *given: Any) -> Any:
    """What a user's own function or class gives for these arguments.

    Args:
        setting: that names it, for the error.
        wanted: what it must be, in words.
        function, given: what is called, and with what.

    Raises:
        UserError: it does not take these arguments.
    """
    try:
        return function(*given)
    except TypeError as error:
        if error.__traceback__ and error.__traceback__.tb_next:  # it takes them, and goes wrong later
            raise
        raise UserError(f"{setting} must be {wanted}: {one_line(error)}") from error


def own_place(error: BaseException) -> str:
    """Where in a module that the user named an error came up: ``my_arm.py, line 15, in peaks``; empty if in none."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = Path(frame.filename)
        if not own.isdisjoint((file, *file.parents)):
            return f"{file.name}, line {frame.lineno}, in {frame.name}"
    return ""
