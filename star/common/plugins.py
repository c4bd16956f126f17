"""Import paths that users give: ``my_package.my_module:MyClass``, from an installed package or the working directory."""

import re
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from star.common.errors import UserError, one_line


def is_path(name: str) -> bool:
    """Whether a name is meant as a path to something importable."""
    return re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", name) is not None


def import_path(path: str, setting: str) -> Any:
    """Import what a path such as ``my_package.my_module:MyClass`` names.

    Args:
        path: module and attribute, see :func:`is_path`.
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
        cure = f"install it, or put {module} into the folder where you call star"
        raise UserError(f"{setting}: there is no module {error.name!r}; {cure}") from None
    except Exception as error:
        raise UserError(f"{setting}: {module} cannot be imported: {type(error).__name__}: {one_line(error)}") from error
    if not hasattr(found, name):
        raise UserError(f"{setting}: the module {module} has no {name!r}")
    return getattr(found, name)
