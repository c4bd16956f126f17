"""What a measurement writes and prints: its rows, into a table that keeps older ones, and a table on the screen."""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from safetensors import SafetensorError

from star.common.console import tell
from star.common.errors import UserError, one_line
from star.common.files import changing, check_file, check_room
from star.config import Config
from star.records.folder import AS_TEXT, MACHINE, check_whole, own_results, parse_csv, write_csv

COUNTS = ("epochs", "prompts", "images")
"""Columns of tables that hold whole numbers."""

DAMAGE = (SafetensorError, ValueError, LookupError)
"""What reading a file that is cut off, empty or of something else raises."""


@dataclass(frozen=True)
class Shown:
    """What a command prints: a table with a title, and a text below it."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    below: str


def write(table: pd.DataFrame, file: Path, command: str, keys: Sequence[str] = ("task", "weights", "config_hash")) -> None:
    """Write figures to a file in place of older rows with the same ``keys``; all other rows stay.

    Args:
        table: of figures, with a column ``machine``, which says what computed them.
        file: the table's.
        command: the command of ``star bench`` whose table it is.
        keys: columns; old rows that agree with a new row in all of them are replaced.

    Raises:
        UserError: the file is not a table of this command.
    """
    keys = list(keys)
    table = table.map(lambda cell: f"{cell:.6g}" if isinstance(cell, float) else cell).replace("nan", "")
    with changing(file):
        if len(older := older_rows(file, list(table.columns), command)):
            new = set(map(tuple, table[keys].astype(str).to_numpy()))
            older = older[[tuple(row) not in new for row in older[keys].to_numpy()]]
            table = pd.concat([older, table]) if len(older) else table
        write_csv(table, file)


def raw_table(out: Path, what: str, columns: Sequence[str], command: str) -> Path:
    """Where the data that a table is made of goes, beside it: ``gradient_cosines.csv.gz`` beside ``gradient.csv``.

    Raises:
        UserError: that file is not a table of this command; after the work it would be too late to learn it.
    """
    raw = out.with_name(f"{out.stem}_{what}.csv.gz")
    older_rows(raw, columns, command)
    return raw


def made_by(parts: Iterable[tuple[str, str]]) -> tuple[str, str]:
    """The commits and the machines that computed the parts of a figure, each named once; see :func:`write`."""
    commits, machines = (" and ".join(sorted(set(names) - {""})) for names in zip(*parts, strict=True))
    return commits or "unknown", machines


def prepared(command: str, config: Config, hashed: str, out: Path | None, columns: Sequence[str]) -> tuple[Path, Path]:
    """A measurement's table and the folder of its parts, after checking, before the work, that both can be written.

    Args:
        command: the command of ``star bench`` whose files they are.
        config: the settings.
        hashed: hash of everything that the figures depend on.
        out: the table's file; None for the default one of the scale.
        columns: of the table.

    Raises:
        UserError: one of them cannot be written, or the file is not a table of this command.
    """
    out = out or own_results(config.scale) / f"{command}.csv"
    folder = Path("runs", command, config.scale, config.task.name, hashed)
    check_file(out, "the table")
    check_room(folder, "what is measured")
    older_rows(out, columns, command)
    return out, folder


def whole(part: Path, check: Callable[[Path], None]) -> bool:
    """Whether a file that a command left to go on from is there; a damaged one is set aside with a caution, and made again.

    Args:
        part: the file.
        check: reads it, and raises one of :data:`DAMAGE` if it is not what the command wrote.
    """
    if not part.exists():
        return False
    try:
        check(part)
    except DAMAGE as error:
        aside = part.with_name(f"{part.name}.damaged")
        os.replace(part, aside)
        tell(f"{part} is damaged ({one_line(error)}); put aside as {aside.name}, and made again")
        return False
    return True


def refuse_less(
    out: Path, columns: Sequence[str], command: str, hashed: str, what: str, asked: int, arms: Sequence[str] = ()
) -> None:
    """Refuse, before the work, to replace figures of more data, or to leave other arms with figures of less.

    Arms of the same settings are compared, and so must be measured on as much data.

    Args:
        out: the table.
        columns: its columns.
        command: the command of ``star bench`` whose table it is.
        hashed: hash of the settings.
        what: the column that counts a figure's data: ``epochs`` or ``prompts``.
        asked: how many the new figures would be of.
        arms: those that would be measured; empty if the table has no arms.

    Raises:
        UserError: one of the two would happen.
    """
    older = older_rows(out, columns, command)
    older = older[older["config_hash"] == hashed]
    counts = older[what].astype(int)
    if len(counts) and counts.max() > asked:
        raise UserError(
            f"{what}={asked}: {out} has figures of {counts.max()} with these settings; say {what}={counts.max()}, or name "
            "another table with out=..."
        )
    if arms and (left := sorted({arm for arm in older.loc[counts < asked, "arm"] if " - " not in arm} - set(arms))):
        raise UserError(
            f"{what}={asked}: {out} has fewer of other arms with these settings; measure them too, "
            f"arms={','.join([*arms, *left])}, or name another table with out=..."
        )


def older_rows(file: Path, columns: Sequence[str], command: str) -> pd.DataFrame:
    """The rows that a table of ``star bench`` has so far, as text.

    Raises:
        UserError: the file is not a table of this command, or a count in it is no whole number.
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
    check_whole(file, older[[name for name in COUNTS if name in older]])
    return older
