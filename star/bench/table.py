"""What a measurement writes and prints: its rows in a table beside older ones, and a table on the screen."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from star.common.errors import UserError
from star.common.files import changing, check_file, check_room, replacing
from star.common.machine import machine
from star.config import Config
from star.records.folder import AS_TEXT, MACHINE, own_results, parse_csv


@dataclass(frozen=True)
class Shown:
    """What a command prints: a table, and what stands below it."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    below: str


def write(table: pd.DataFrame, file: Path, command: str, keys: Sequence[str] = ("task", "weights", "config_hash")) -> None:
    """Put figures into a file in the place of older ones of the same task, weights and settings; the others stay.

    Args:
        table: of figures; where it does not say what computed them (``machine``) it is what computes here.
        file: the table's.
        command: of ``star bench``, whose table it is.
        keys: the columns in which rows of the same are alike.

    Raises:
        UserError: the file is no such table.
    """
    keys = list(keys)
    table = table if MACHINE in table else table.assign(**{MACHINE: machine()})
    table = table.map(lambda cell: f"{cell:.6g}" if isinstance(cell, float) else cell).replace("nan", "")
    with changing(file):
        if len(older := older_rows(file, list(table.columns), command)):
            new = set(map(tuple, table[keys].astype(str).to_numpy()))
            older = older[[tuple(row) not in new for row in older[keys].to_numpy()]]
            table = pd.concat([older, table]) if len(older) else table
        with replacing(file) as part:
            table.to_csv(part, index=False)


def made_by(parts: Iterable[tuple[str, str]]) -> tuple[str, str]:
    """The commits and the machines that computed what a figure is made of, each once; see :func:`write`."""
    commits, machines = (" and ".join(sorted(set(names) - {""})) for names in zip(*parts, strict=True))
    return commits or "unknown", machines


def prepared(command: str, config: Config, hashed: str, out: Path | None, columns: Sequence[str]) -> tuple[Path, Path]:
    """Where a measurement's table goes, and the folder of what it is made of; seen, before the work, that both can be written.

    Args:
        command: of ``star bench``, whose files they are.
        config: the settings.
        hashed: of all that the figures depend on.
        out: the table, or None for that of the scale.
        columns: of the table.

    Raises:
        UserError: one of them cannot be written.
    """
    out = out or own_results(config.scale) / f"{command}.csv"
    folder = Path("runs", command, config.scale, config.task.name, hashed)
    check_file(out, "the table")
    check_room(folder, "what is measured")
    older_rows(out, columns, command)
    return out, folder


def older_rows(file: Path, columns: Sequence[str], command: str) -> pd.DataFrame:
    """What a table of ``star bench`` holds so far, as text.

    Raises:
        UserError: the file is no such table.
    """
    if not file.exists():
        return pd.DataFrame(columns=list(columns))
    try:
        older = parse_csv(file, **AS_TEXT)
    except UserError:
        older = pd.DataFrame()
    if MACHINE not in older:
        older[MACHINE] = ""
    if list(older) != [*(name for name in columns if name != MACHINE), MACHINE]:
        raise UserError(f"{file} is no table of star bench {command}; name another file with out=...")
    return older
