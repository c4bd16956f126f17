"""From run folders to result files: everything that tables and reports read, so that they do not need the run folders.

Rows of other runs stay in the files. The rows of the given cells replace those of the same task, method and seed, even if an
older evaluator measured them, and those of the same method with other settings, whatever the seed: a table averages over the
seeds of one configuration.
"""

import json
import os
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, partial
from itertools import count, groupby
from pathlib import Path

import pandas as pd

from star.common.console import log, tell
from star.common.errors import UserError
from star.common.files import MOST_AMOUNT, is_amount, locked
from star.matrix.cells import Cell, same_given
from star.records import results
from star.records.folder import (
    AS_TEXT,
    COMMANDS,
    CURVES,
    EVALUATION,
    FIRST,
    IMAGES,
    KEY,
    belonging,
    parse_csv,
    read_file,
    write_csv,
)
from star.records.results import ROWS, VERDICTS, Row
from star.training.folder import RunFolder


def rows(cell: Cell) -> list[Row]:
    """The result rows of a cell that is done: those of its own task first, then those of the others."""
    return [row for folder in cell.measured().values() for row in results.read_rows(folder / ROWS)]


def put(cell: Cell, folder: Path) -> None:
    """Put a cell's rows into the result files of the tasks that it was measured on."""
    with locked(folder):
        _put(cell, folder)


def _put(cell: Cell, folder: Path) -> None:
    for task, new in _by_task(cell):
        file = folder / f"{task}.csv"
        left_out = results.upsert(file, new, _outdated(new, cell))
        if seeds := sorted({row.seed for row in left_out}):
            told = f"{new[0].method} seed {', '.join(map(str, seeds))} had other settings or an older evaluator, left out now"
            log(f"star: {file}: {told}")


def _by_task(cell: Cell) -> Iterator[tuple[str, list[Row]]]:
    """A cell's rows by the task that it was measured on."""
    for task, part in groupby(rows(cell), key=lambda row: row.task):
        yield task, list(part)


def leaving(cell: Cell, there: Mapping[str, Sequence[Row]]) -> dict[str, list[Row]]:
    """The rows that :func:`put` would remove, with other settings or from an older evaluator, of those there; both by task."""
    found = {task: list(filter(_outdated(new, cell), there.get(task, ()))) for task, new in _by_task(cell)}
    return {task: out for task, out in found.items() if out}


def _outdated(new: Sequence[Row], cell: Cell) -> Callable[[Row], bool]:
    """A predicate: must a row of a result file give way to a cell's new rows of the same task?"""
    measured = {(row.protocol, row.method) for row in new}
    again = {(row.method, row.seed, row.config_hash) for row in new}
    current = cache(partial(cell.config_hash, new[0].task))  # a hash takes milliseconds, and there are many rows

    def outdated(row: Row) -> bool:
        if (row.protocol, row.method) in measured:
            return row.config_hash != current(row.seed)
        # An older evaluator judged the same images; the run folder no longer has its verdicts.
        return (row.method, row.seed, row.config_hash) in again

    return outdated


def collect(cells: Sequence[Cell], folder: Path) -> None:
    """Write all result files from the folders of cells that are done.

    Besides the result files of the tasks these are ``curves.csv``, a line per epoch with every figure that training logged;
    ``images.csv.gz``, a line per evaluated image with its verdicts, for comparisons that are paired by prompt and noise;
    and ``commands.csv``, where runs that were trained alike have the same ``terms``. (task, method, seed, config_hash)
    tells which result rows a line belongs to.

    Raises:
        UserError: as :func:`star.matrix.cells.same_given`, or a file cannot be read; nothing is written then.
    """
    same_given(cells)
    # The run folders are read before anything is written, so that a damaged file in them changes no result file.
    curves = [_curves(cell) for cell in cells]
    images = [part for cell in cells for part in _images(cell)]
    commands = [_labelled(cell.folder / "final", [_command(cell)]) for cell in cells]
    with locked(folder):
        for file in results.result_files(folder):  # and so are the result files, of which each is written by itself
            results.read(file)
        for cell in cells:
            _put(cell, folder)
        known = [row for file in results.result_files(folder) for row in results.read(file)]
        _replace(folder / CURVES, curves, known)
        _replace(folder / IMAGES, images, known)
        _replace(folder / COMMANDS, commands, known)


def _curves(cell: Cell) -> pd.DataFrame:
    lines = RunFolder(cell.folder).metrics()
    figures = [{name: json.dumps(value) for name, value in line.items() if is_amount(value, -MOST_AMOUNT)} for line in lines]
    return _labelled(cell.folder / "final", figures)


def _images(cell: Cell) -> Iterable[pd.DataFrame]:
    for folder in cell.measured().values():
        yield _labelled(folder, parse_csv(folder / VERDICTS, **AS_TEXT))


def _command(cell: Cell) -> dict:
    return {"command": shlex.join(cell.command), "terms": cell.terms_hash()}


def _labelled(folder: Path, table: pd.DataFrame | list[dict]) -> pd.DataFrame:
    """A table with the :data:`EVALUATION` columns of an evaluation's result rows added."""
    row = results.read_rows(folder / ROWS)[0]
    return pd.DataFrame(table).assign(**{name: str(getattr(row, name)) for name in EVALUATION})


def _older(file: Path) -> pd.DataFrame:
    """The table in a file. A damaged file is moved aside, so that it can be written again and nothing in it is lost."""
    try:
        return read_file(file, **AS_TEXT)
    except UserError as error:
        aside = next(path for n in count(1) if not (path := file.with_name(f"{file.name}.damaged{n}")).exists())
        os.replace(file, aside)
        tell(f"{error}; put aside as {aside.name}")
        return pd.DataFrame(columns=EVALUATION)


def _replace(file: Path, parts: Iterable[pd.DataFrame], known: Sequence[Row]) -> None:
    """Merge tables into a file: columns as in :data:`FIRST`, then by name; rows by task, method and seed, otherwise in order.

    Old lines stay if they belong to ``known`` result rows, or to a task of which none are known, perhaps because a spreadsheet
    changed its result file, and if no new line is of the same evaluation. One training may have several, and trainings that
    differ may share task, method and seed if they were judged under different protocols.
    """
    first = FIRST[file.name]
    new = pd.concat([pd.DataFrame(columns=first), *parts])
    if file.exists():
        old = _older(file)
        old = pd.concat([belonging(old, known), old[~old["task"].isin({row.task for row in known})]])
        new = pd.concat([old[~_keys(old).isin(_keys(new))], new])
    new = new[[*first, *sorted(set(new.columns) - set(first))]].fillna("")
    new = new.sort_values(KEY, kind="stable", key=lambda column: column.astype(int) if column.name == "seed" else column)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_csv(new, file)


def _keys(table: pd.DataFrame) -> pd.MultiIndex:
    return pd.MultiIndex.from_frame(table[EVALUATION].astype(str))
