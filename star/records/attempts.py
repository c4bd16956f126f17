"""The attempts at a run of a matrix, as its folder keeps them: a line for each that has ended, and one for each node of a
SLURM job, but the first, on which one failed."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from star.common.files import is_amount, read_jsonl

ATTEMPTS = "attempts.jsonl"


def attempts(folder: Path) -> list[dict[str, Any]]:
    """The attempts that have ended, each with its ``seconds`` of wall-clock time and the ``reason`` if it failed.

    An empty list if this user cannot read them.
    """
    with suppress(PermissionError):
        return [line for line in lines(folder) if line.keys() >= {"seconds", "reason"} and _fits(line)]
    return []


def _fits(line: dict[str, Any]) -> bool:
    return is_amount(line["seconds"]) and (line["reason"] is None or isinstance(line["reason"], str))


def lines(folder: Path) -> list[dict[str, Any]]:
    """All lines in the order in which they were written, those of nodes included, which have ``node`` and ``reason``."""
    return read_jsonl(folder / ATTEMPTS)
