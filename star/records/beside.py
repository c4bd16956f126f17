"""The user's own results beside those that ship with this project, and beside the published ones."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from star.records.comparison import IMAGE
from star.records.folder import AS_TEXT, EVALUATION, IMAGES, read_file
from star.records.names import measured_on_own_task, reading_order
from star.records.results import PaperRow, Row, read
from star.records.summary import Summary, summarise
from star.records.tables import DIVERSITY

HEADLINES = {"geneval": ("geneval_official_macro", "geneval_official_micro"), "ocr": ("ocr_accuracy",)}
"""The headline scores of a task; for other tasks it is the score named like the task. The mean behind GenEval's published
numbers is not always stated, so both means are shown."""


@dataclass(frozen=True)
class Beside:
    """One score of one method from each source.

    Attributes:
        own: what was run here.
        shipped: the shipped results of the same protocol; None if there are none.
        paper: the published number; None if there is none.
    """

    own: Summary
    shipped: Summary | None
    paper: PaperRow | None


@dataclass(frozen=True)
class Agreement:
    """Whether runs that were repeated with the same settings and seed gave the same digits.

    Attributes:
        runs: the (method, seed) of each such run, sorted.
        figures: how many of their scores were compared.
        verdicts: of how many images the verdicts were compared.
        differing: the runs with a score or verdict that differs.
        machines: what computed the differing runs, here and in the shipped results; empty if unknown.
    """

    runs: tuple[tuple[str, int], ...]
    figures: int
    verdicts: int
    differing: tuple[tuple[str, int], ...]
    machines: tuple[str, str]


def lines(task: str, own: Sequence[Row], shipped: Sequence[Row], paper: Iterable[PaperRow]) -> list[Beside]:
    """The headline scores of what was run here, sorted by score and by method in reading order.

    Args:
        task: the task whose scores are wanted.
        own, shipped: result rows; those of other tasks are ignored.
        paper: the published numbers.
    """
    mine, theirs = (_summaries(rows, task) for rows in (own, shipped))
    published = {row.key: row for row in paper}
    measured = {summary.metric for summary in mine.values()}
    # A user-defined evaluator has other metrics, which are all shown.
    shown = measured & set(HEADLINES.get(task, (task,))) or measured - {DIVERSITY}
    found = [summary for summary in mine.values() if summary.metric in shown]
    order = reading_order(summary.method for summary in found)
    found.sort(key=lambda summary: (summary.metric, order.index(summary.method)))
    return [Beside(s, theirs.get(_place(s)), published.get((task, s.metric, s.method))) for s in found]


def agreement(task: str, own: Path, shipped: Path) -> Agreement:
    """Whether runs that two results folders have with the same settings and seed agree in every digit.

    Args:
        task: whose results are compared.
        own, shipped: results folders; either may be without results of the task.

    Raises:
        UserError: a result file does not follow its schema.
    """
    rows = [_of_settings(folder / f"{task}.csv") for folder in (own, shipped)]
    shared = rows[0].keys() & rows[1].keys()
    off = {_run(rows[0][key]) for key in shared if _digits(rows[0][key]) != _digits(rows[1][key])}
    runs = {_run(rows[0][key]) for key in shared}
    verdicts = _shared_verdicts(task, own, shipped) if shared else pd.DataFrame(columns=[*KEYS, "same"])
    verdicts = verdicts[pd.MultiIndex.from_frame(verdicts[["method", "seed"]]).isin(runs)]
    off |= set(verdicts.loc[~verdicts["same"].astype(bool), ["method", "seed"]].itertuples(index=False, name=None))
    mine, theirs = (_machines(side[key] for key in shared if _run(side[key]) in off) for side in rows)
    return Agreement(tuple(sorted(runs)), len(shared), len(verdicts), tuple(sorted(off)), (mine, theirs))


KEYS = [*EVALUATION, *IMAGE]


def _summaries(rows: Iterable[Row], task: str) -> dict[tuple[str, str, str], Summary]:
    own = (row for row in rows if row.task == task and measured_on_own_task(row.method))
    return {_place(summary): summary for summary in summarise(own)}


def _place(summary: Summary) -> tuple[str, str, str]:
    return summary.metric, summary.method, summary.protocol


def _of_settings(file: Path) -> dict[tuple[Any, ...], Row]:
    return {(*row.key, row.config_hash): row for row in read(file)} if file.exists() else {}


def _run(row: Row) -> tuple[str, int]:
    return row.method, row.seed


def _machines(rows: Iterable[Row]) -> str:
    """What computed the rows, as far as it is known."""
    return " and ".join(sorted({row.machine for row in rows} - {""}))


def _digits(row: Row) -> tuple[Any, ...]:
    return row.value, row.stderr, row.images, row.prompts, row.updates, row.images_seen


def _shared_verdicts(task: str, own: Path, shipped: Path) -> pd.DataFrame:
    """A row per image that both folders have verdicts on, with the same settings: its key, and whether all verdicts agree."""
    tables = list(_verdicts(task, (own, shipped)))
    if len(tables) < 2:
        return pd.DataFrame(columns=[*KEYS, "same"])
    columns = [name for name in tables[0] if name in tables[1] and name not in KEYS]
    both = tables[0].merge(tables[1], on=KEYS, suffixes=("", " shipped"))
    same = [both[name] == both[f"{name} shipped"] for name in columns]
    return both[KEYS].assign(same=pd.concat(same, axis=1).all(axis=1) if same else True).astype({"seed": int})


def _verdicts(task: str, folders: Iterable[Path]) -> Iterator[pd.DataFrame]:
    for folder in folders:
        if (file := folder / IMAGES).exists():
            table = read_file(file, **AS_TEXT)
            own = table[table["task"] == task]
            yield own.drop_duplicates(KEYS)
