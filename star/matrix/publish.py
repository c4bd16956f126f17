"""``star publish``: runs that are done, from the run folders into the results that ship with this project."""

import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from star.common.console import tell
from star.common.errors import UserError
from star.common.plugins import import_path, is_path
from star.config import Config
from star.matrix.cells import Cell, State, expand
from star.matrix.collect import collect, leaving, rows
from star.records import results
from star.records.code import committed, is_commit
from star.records.folder import shipped_results
from star.records.results import Row


def publish(words: Sequence[str], replace: bool = False) -> tuple[Path, int]:
    """Put the cells of a matrix that are done into ``results/SCALE``; those that are not are left out.

    Args:
        words: as for ``star matrix``: they name the cells, and so the settings that their runs must have.
        replace: remove published rows that have other settings or come from an older evaluator, and put a run in place of the
            same one that was published before. Without it, a cell that is published and has other figures here, as from
            another kind of processor, is left out.

    Returns:
        the folder, and how many cells were put there.

    Raises:
        UserError: a word cannot be used, no cell is done, a run's code or the user's own is in no commit, runs were made with
            different base weights or prompts, one task was measured under several protocols, or rows would be removed without
            ``replace``; nothing is written then.
    """
    cells = expand(words)
    for cell in cells:
        if told := cell.fault():
            tell(f"{cell.label} is left out: {told}; `{shlex.join(cell.command)}` makes it again or says what to do")
    done = [cell for cell in cells if cell.state() is State.DONE]
    if not done:
        raise UserError("none of these runs is done: nothing to publish; the words are those of the star matrix that ran them")
    folder = shipped_results(done[0].config.scale)
    _check_code(done)
    if not replace:
        _check_kept(done, folder)
        done = _without_standing(done, folder)
    _check_protocols(done, folder)
    collect(done, folder)
    return folder, len(done)


def _check_code(done: Sequence[Cell]) -> None:
    """Refuse results whose code, or a user's own that they name, is in no commit: nobody could reproduce them."""
    for cell in done:
        for row in rows(cell):
            if not is_commit(row.commit):
                raise UserError(
                    f"{cell.folder}: its code was {row.commit}, which no commit has; commit the code, delete the folder and "
                    "run it again"
                )
    for path in dict.fromkeys(path for cell in done for path in _own(cell.config)):
        import_path(path, "star publish")
        file = sys.modules[path.partition(":")[0]].__file__
        if not (file and committed(Path(file))):
            raise UserError(f"{path} is not in this repository's commit, so nobody could repeat its runs; commit it first")


def _own(config: Config) -> Iterator[str]:
    """The paths of a user's own prompts, evaluators, rewards, arm and model."""
    named = (config.task.prompts, config.method.arm, config.model.kind, *config.evaluators.values(), *config.rewards.others)
    return (name for name in named if name and is_path(name))


def _check_protocols(done: Sequence[Cell], folder: Path) -> None:
    """Refuse results that would put several protocols of one task together, also with published rows that stay."""
    new = [row for cell in done for row in rows(cell)]
    out = {row for cell in done for those in leaving(cell, folder).values() for row in those}
    protocols: dict[str, str] = {}
    for row in [*(row for row in _published(done, folder) if row not in out), *new]:
        other = protocols.setdefault(row.task, row.protocol)
        if row.protocol != other:
            raise UserError(
                f"{row.task} was measured under {other} and {row.protocol}: publish one of them, in one folder with no other "
                f"({folder})"
            )


def _without_standing(done: Sequence[Cell], folder: Path) -> list[Cell]:
    """The cells but those whose run is published with other figures, of another machine or time; tells of these."""
    published = {row.key: row for row in _published(done, folder)}
    left = []
    for cell in done:
        differ = (row for row in rows(cell) if row.key in published and not results.alike(row, published[row.key]))
        if row := next(differ, None):
            file = folder / f"{row.task}.csv"
            tell(f"{file} has {cell.label} with other figures, which stay; --replace puts those of {cell.folder} there")
        else:
            left.append(cell)
    return left


def _published(done: Sequence[Cell], folder: Path) -> list[Row]:
    """The rows of the result files of all tasks that the cells were measured on."""
    tasks = dict.fromkeys(row.task for cell in done for row in rows(cell))
    return [row for task in tasks if (file := folder / f"{task}.csv").exists() for row in results.read(file)]


def _check_kept(done: Sequence[Cell], folder: Path) -> None:
    """Refuse to remove published rows."""
    for cell in done:
        for file, out in leaving(cell, folder).items():
            seeds = ", ".join(map(str, sorted({row.seed for row in out})))
            raise UserError(
                f"{file} has {out[0].method} of seed {seeds} with other settings, or of an older evaluator, which would go "
                f"for {cell.label}; publish runs of the same settings, or say --replace"
            )
