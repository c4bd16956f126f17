"""``star publish``: runs that are done, from the run folders into the results that ship with this project."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from star.common.errors import UserError
from star.matrix.cells import Cell, State, expand
from star.matrix.collect import collect, rows
from star.records.folder import shipped_results
from star.training.checkpoint import tell


def publish(words: Sequence[str]) -> tuple[Path, int]:
    """Put the cells of a matrix that are done into ``results/SCALE``; those that are not are left out.

    Args:
        words: as for ``star matrix``: they name the cells, and so the settings that their runs must have.

    Returns:
        the folder, and how many cells were put there.

    Raises:
        UserError: a word cannot be used, no cell is done, a run is of code that no commit has, or one task was measured under
            several protocols; nothing was written then.
    """
    cells = expand(words)
    for cell in cells:
        if told := cell.fault():
            tell(f"{cell.label} is left out: {told}; `{shlex.join(cell.command)}` makes it again or says what to do")
    done = [cell for cell in cells if cell.state() is State.DONE]
    if not done:
        raise UserError("none of these runs is done: nothing to publish; the words are those of the star matrix that ran them")
    _check(done)
    folder = shipped_results(done[0].config.scale)
    collect(done, folder)
    return folder, len(done)


def _check(done: Sequence[Cell]) -> None:
    """Refuse results that nobody could make again, or that must not stand in one table."""
    protocols: dict[str, str] = {}
    for cell in done:
        for row in rows(cell):
            if "unknown" in row.commit or "+dirty" in row.commit:
                raise UserError(
                    f"{cell.folder}: its code was {row.commit}, which no commit has; commit the code, delete the folder and "
                    "run it again"
                )
            other = protocols.setdefault(row.task, row.protocol)
            if row.protocol != other:
                raise UserError(f"{row.task} was measured under {other} and {row.protocol}: publish one of them")
