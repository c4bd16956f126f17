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


def refuse_less(
    out: Path, columns: Sequence[str], command: str, hashed: str, what: str, asked: int, arms: Sequence[str] = ()
) -> None:
    """See, before the work, that figures of the same settings in a table remain of as much as each other, and of no less than
    they were: arms are compared.

    Args:
        out: the table.
        columns: its columns.
        command: of ``star bench``, whose table it is.
        hashed: of the settings.
        what: a column that says of how many ``epochs`` or ``prompts`` figures are.
        asked: how many they would be of.
        arms: that would be measured; none if a table has none.

    Raises:
        UserError: they would not.
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
