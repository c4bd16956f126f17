"""Where results are kept, and the files of a results folder besides the result files of its tasks.

Results of this machine's runs go to ``runs/results/SCALE``, which git ignores; ``star publish`` puts them into
``results/SCALE``, which ships. In both, ``curves.csv`` has a line per epoch of every training, ``images.csv.gz`` one per
evaluated image with its verdicts, ``commands.csv`` the command of every run and what trainings must share to be compared
(``terms``); ``gradient.csv``, ``influence.csv`` and ``first_updates.csv`` have what ``star bench`` of these names measured;
``lasting.csv`` has longer trainings by the last of them.
"""

import gzip
import zlib
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from star.common.errors import UserError, one_line
from star.common.files import replacing
from star.records.code import ROOT
from star.records.results import Row, result_files

OWN = Path("runs", "results")
"""Where results of this machine's runs are put, a folder for each scale."""

CURVES, IMAGES, COMMANDS = "curves.csv", "images.csv.gz", "commands.csv"
GRADIENT, INFLUENCE, FIRST_UPDATES, LASTING = "gradient.csv", "influence.csv", "first_updates.csv", "lasting.csv"
BENCH = {
    GRADIENT: "star bench gradient",
    INFLUENCE: "star bench influence",
    FIRST_UPDATES: "star bench first_updates",
    LASTING: "star bench first_updates epochs=30 out=FILE",
}
"""A table of a measurement -> the command that writes it."""

NO_RESULTS = (CURVES, COMMANDS, *BENCH)
"""CSV tables in a results folder that are not result files."""

INITIAL = "initial"
"""The name of a model's initial weights in gradient.csv and influence.csv."""

MACHINE = "machine"
"""The last column of the tables of ``star bench``: what computed the figures, see :func:`star.common.machine.machine`. Older
files lack it."""

KEY = ["task", "method", "seed"]
EVALUATION = [*KEY, "config_hash"]
FIRST = {
    CURVES: [*EVALUATION, "epoch", "updates", "images_seen", "seconds", "reward"],
    IMAGES: [*EVALUATION, "stratum", "prompt", "image"],
    COMMANDS: [*EVALUATION, "command", "terms"],
}
"""The columns that each file begins with."""

NEEDED = {name: [column for column in first if column != "terms"] for name, first in FIRST.items()} | {
    GRADIENT: ["task", "weights", "arm", "part", "metric", "value", "stderr", "epochs", "images", "commit", "config_hash"],
    INFLUENCE: ["task", "weights", "part", "metric", "value", "stderr", "prompts", "images", "commit", "config_hash"],
    **dict.fromkeys(
        (FIRST_UPDATES, LASTING), ["task", "arm", "seed", "epoch", "updates", "lr", "reward", "commit", "config_hash"]
    ),
}
"""The columns that each file must have; older files lack ``terms``."""

ONCE = {
    CURVES: ([*EVALUATION, "epoch"], "an epoch"),
    COMMANDS: (EVALUATION, "a run"),
    GRADIENT: (["task", "weights", "arm", "part", "metric", "config_hash"], "a figure"),
    INFLUENCE: (["task", "weights", "part", "metric", "config_hash"], "a figure"),
    **dict.fromkeys((FIRST_UPDATES, LASTING), (["task", "arm", "seed", "epoch", "config_hash"], "an epoch")),
}
"""The columns that identify a line, and what a line stands for. The lines of images are not checked: a benchmark may
list a prompt twice."""

NUMBERS = (
    *("seed", "epoch", "updates", "images_seen", "seconds", "reward", "image"),
    *("epochs", "prompts", "images", "value", "lr"),
)
"""Columns that hold numbers in every line."""

WHOLE = ("seed", "epoch", "updates", "images_seen", "image", "epochs", "prompts", "images")
"""Needed columns that hold whole numbers."""

TEXTS = ("task", "method", "config_hash", "commit", "stratum", "prompt", "command", "terms", MACHINE)
"""Columns that hold text: "None" and "NA" are prompts like any other, and some hashes and commits look like numbers."""

MAY_BE_EMPTY = ("stratum", "command", "stderr")

AS_TEXT: dict[str, Any] = {"dtype": str, "keep_default_na": False}
"""Pandas options with which values that are read and written again stay the same, byte for byte."""

TYPED: dict[str, Any] = {
    "dtype": dict.fromkeys(TEXTS, str),
    "keep_default_na": False,
    "na_values": [""],
    "low_memory": False,
}
"""Pandas options with which numbers are read as numbers."""


def cure(file: Path) -> str:
    """What to do about a file that is damaged."""
    return f"move it elsewhere, and `{BENCH.get(file.name, 'star matrix')}` writes it again"


def parse_csv(file: Path, **options: Any) -> pd.DataFrame:
    """A CSV file as pandas reads it, with its options; texts that are missing are empty.

    Raises:
        UserError: it cannot be read.
    """
    try:
        found: pd.DataFrame = pd.read_csv(file, **options).fillna(dict.fromkeys(TEXTS, ""))
    except (OSError, ValueError, EOFError, OverflowError, zlib.error) as error:
        raise UserError(f"{file} cannot be read ({one_line(error)}); {cure(file)}") from None
    return found


def write_csv(table: pd.DataFrame, file: Path) -> None:
    """Replace a file by a table; one whose name ends in ``.gz`` is compressed, and equal tables give equal bytes."""
    data = table.to_csv(index=False, lineterminator="\n").encode()
    with replacing(file) as part:
        part.write_bytes(gzip.compress(data, mtime=0) if file.suffix == ".gz" else data)


def read_file(file: Path, **options: Any) -> pd.DataFrame:
    """One of the files of this module, with :data:`AS_TEXT` or :data:`TYPED`.

    Raises:
        UserError: it cannot be read, is cut off or lacks a column, or a line lacks a required value or repeats another.
    """
    found = parse_csv(file, **options)
    if file.suffix == ".csv" and not file.read_bytes().endswith(b"\n"):
        raise UserError(f"{file} is cut off within its last line; {cure(file)}")
    needed = NEEDED[file.name] if len(found) else [name for name in EVALUATION if name in NEEDED[file.name]]
    if lacking := [name for name in needed if name not in found]:
        raise UserError(f"{file} has no column {', '.join(lacking)}; {cure(file)}")
    _check_cells(file, found, needed)
    check_whole(file, found[needed])
    columns, what = ONCE.get(file.name, ([], ""))
    if columns and len(found) and (twice := found.duplicated(columns)).any():
        raise UserError(f"{file}, row {int(np.argmax(twice)) + 1}: {what} that another row has too; {cure(file)}")
    return found


def check_whole(file: Path, table: pd.DataFrame) -> None:
    """Check that cells which count something hold whole numbers; a spreadsheet may have made 2.0 of 2.

    Raises:
        UserError: one does not.
    """
    for name in (name for name in WHOLE if name in table):
        known = table[name].astype(str).str.fullmatch("[0-9]+")
        if not known.all():
            row = int(np.argmin(known))
            raise UserError(
                f"{file}, row {row + 1}: {name} is {table[name].iloc[row]}, no whole number; put one in, or move the file "
                "elsewhere"
            )


def _check_cells(file: Path, table: pd.DataFrame, needed: Collection[str]) -> None:
    """Check that numeric cells hold finite numbers and that no cell is empty, except where a cell may be."""
    for name, column in table.items():
        # What else a verdict says is a user's, text or number, whatever its name.
        own = name in (*needed, "reward")
        number = (own and name in (*NUMBERS, "stderr")) or (file.name == CURVES and name not in TEXTS)
        empty = column.isna() | (column == "")
        known = np.isfinite(pd.to_numeric(column, errors="coerce")) if number else ~empty
        if name not in needed or name in MAY_BE_EMPTY:
            known |= empty
        if not known.all():
            fault = "no number" if number else "empty"
            raise UserError(f"{file}, row {int(np.argmin(known)) + 1}: {name} is {fault}; {cure(file)}")


def belonging(table: pd.DataFrame, known: Iterable[Row]) -> pd.DataFrame:
    """The lines of a table that belong to result rows, rather than to runs whose results have been replaced."""
    evaluations = pd.DataFrame([(r.task, r.method, r.seed, r.config_hash) for r in known], columns=EVALUATION)
    return table.merge(evaluations.drop_duplicates().astype(table[EVALUATION].dtypes), on=EVALUATION)


def own_results(scale: str) -> Path:
    """The folder of results that were made here."""
    return OWN / scale


def shipped_results(scale: str) -> Path:
    """The folder of results that ship with this project: of this checkout, or else of the current directory."""
    root = ROOT if (ROOT / "results").is_dir() else Path()
    return root / "results" / scale


def latest_own_results() -> Path:
    """The folder of the results that were made here last.

    Raises:
        UserError: there are none.
    """
    files = [file for folder in OWN.glob("*") for file in result_files(folder)]
    if not files:
        done = any(Path("runs").glob("*/*/*/*/final/rows.json"))
        ways = "`star matrix`, with the words of the runs that are done in runs, makes them; or " if done else ""
        raise UserError(
            f"no results of yours in {OWN}: {ways}run `star reproduce geneval`, or name what ships, e.g. results/mini"
        )
    return max(files, key=lambda file: file.stat().st_mtime).parent
