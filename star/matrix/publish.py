"""``star publish``: runs that are done, from the run folders into the results that ship with this project."""

import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
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
    published = _published(done, folder)
    if not replace:
        _check_kept(done, published, folder)
        done = _without_standing(done, published, folder)
    _check_protocols(done, published, folder)
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


def _published(done: Sequence[Cell], folder: Path) -> dict[str, list[Row]]:
    """The rows of the result files of all tasks that the cells were measured on, by task."""
    files = {row.task: folder / f"{row.task}.csv" for cell in done for row in rows(cell)}
    return {task: results.read(file) for task, file in files.items() if file.exists()}


def _check_protocols(done: Sequence[Cell], published: Mapping[str, Sequence[Row]], folder: Path) -> None:
    """Refuse results that would put several protocols of one task together, also with published rows that stay."""
    new = [row for cell in done for row in rows(cell)]
    out = {row for cell in done for those in leaving(cell, published).values() for row in those}
    there = [row for task in dict.fromkeys(row.task for row in new) for row in published.get(task, ()) if row not in out]
    protocols: dict[str, str] = {}
    for row in [*there, *new]:
        other = protocols.setdefault(row.task, row.protocol)
        if row.protocol != other:
            raise UserError(
                f"{row.task} was measured under {other} and {row.protocol}: publish one of them, in one folder with no other "
                f"({folder})"
            )


def _without_standing(done: Sequence[Cell], published: Mapping[str, Sequence[Row]], folder: Path) -> list[Cell]:
    """The cells but those whose run is published with other figures, of another machine or time; tells of these."""
    there = {row.key: row for own in published.values() for row in own}
    left = []
    for cell in done:
        differ = (row for row in rows(cell) if row.key in there and not results.alike(row, there[row.key]))
        if row := next(differ, None):
            file = folder / f"{row.task}.csv"
            tell(f"{file} has {cell.label} with other figures, which stay; --replace puts those of {cell.folder} there")
        else:
            left.append(cell)
    return left


def _check_kept(done: Sequence[Cell], published: Mapping[str, Sequence[Row]], folder: Path) -> None:
    """Refuse to remove published rows."""
    for cell in done:
        for task, out in leaving(cell, published).items():
            seeds = ", ".join(map(str, sorted({row.seed for row in out})))
            raise UserError(
                f"{folder / f'{task}.csv'} has {out[0].method} of seed {seeds} with other settings, or of an older evaluator, "
                f"which would go for {cell.label}; publish runs of the same settings, or say --replace"
            )
