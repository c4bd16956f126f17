"""One's own results beside those that ship with this project, and beside the published ones."""

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
"""The scores of a task that are told at a glance, a task's own name for those that are not here. The mean behind GenEval's
published numbers is not always stated, so both are."""


@dataclass(frozen=True)
class Beside:
    """One score of one method; None where there is none.

    Attributes:
        own: what was run here.
        shipped: of the same protocol.
        paper: the published number.
    """

    own: Summary
    shipped: Summary | None
    paper: PaperRow | None


@dataclass(frozen=True)
class Agreement:
    """Whether runs that were made twice, with the same settings and seed, gave the same digits.

    Attributes:
        runs: the (method, seed) of both, sorted.
        figures: how many of their scores were compared.
        verdicts: and how many verdicts on images.
        differing: the runs of which a score or verdict is another.
        machines: what computed these here, and there; empty where it is not known.
    """

    runs: tuple[tuple[str, int], ...]
    figures: int
    verdicts: int
    differing: tuple[tuple[str, int], ...]
    machines: tuple[str, str]


def lines(task: str, own: Sequence[Row], shipped: Sequence[Row], paper: Iterable[PaperRow]) -> list[Beside]:
    """The headline scores of what was run here, by score and by method in reading order.

    Args:
        task: whose.
        own, shipped: result rows, also of other tasks.
        paper: the published numbers.
    """
    mine, theirs = (_summaries(rows, task) for rows in (own, shipped))
    published = {row.key: row for row in paper}
    measured = {summary.metric for summary in mine.values()}
    # An evaluator of somebody's own has other metrics, all of which are shown.
    shown = measured & set(HEADLINES.get(task, (task,))) or measured - {DIVERSITY}
    found = [summary for summary in mine.values() if summary.metric in shown]
    order = reading_order(summary.method for summary in found)
    found.sort(key=lambda summary: (summary.metric, order.index(summary.method)))
    return [Beside(s, theirs.get(_place(s)), published.get((task, s.metric, s.method))) for s in found]


def agreement(task: str, own: Path, shipped: Path) -> Agreement:
    """Of the runs that two results folders have with the same settings and seed: do their digits agree?

    Args:
        task: whose results are compared.
        own, shipped: results folders; the second need not have any.

    Raises:
        UserError: a result file does not follow its schema.
    """
    rows = [_of_settings(folder / f"{task}.csv") for folder in (own, shipped)]
    shared = rows[0].keys() & rows[1].keys()
    off = {_run(rows[0][key]) for key in shared if _digits(rows[0][key]) != _digits(rows[1][key])}
    runs = {_run(rows[0][key]) for key in shared}
    verdicts = _shared_verdicts(task, own, shipped) if shared else pd.DataFrame(columns=[*KEYS, "same"])
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
    """What computed them, as far as it is known."""
    return " and ".join(sorted({row.machine for row in rows} - {""}))


def _digits(row: Row) -> tuple[Any, ...]:
    return row.value, row.stderr, row.images, row.prompts, row.updates, row.images_seen


def _shared_verdicts(task: str, own: Path, shipped: Path) -> pd.DataFrame:
    """A line per image that both folders have verdicts on, from the same settings: its key, and whether all are the same."""
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
