"""The numbers that a report works out, as CSV files for programs."""

from collections.abc import Mapping, Sequence
from dataclasses import fields

import pandas as pd

from star.common.files import replacing
from star.records.comparison import Comparison
from star.records.diff import DiffRow, against_paper
from star.report.collection import Collection

FOLDER = "tables"
DIFFERENCES = "differences.csv"
AGAINST_PAPER = "against_paper.csv"
COLUMNS = (
    *("task", "score", "arm", "reference", "difference", "low", "high", "stderr"),
    *("seeds", "per_seed", "images", "prompts", "trained_alike"),
)
"""The columns of :data:`DIFFERENCES`."""


def write(found: Collection, compared: Mapping[str, Sequence[Comparison]]) -> None:
    """``tables/differences.csv`` and ``tables/against_paper.csv`` in the results folder."""
    folder = found.folder / FOLDER
    folder.mkdir(exist_ok=True)
    differences = [_difference(task, c) for task, own in compared.items() for c in own]
    files = {
        DIFFERENCES: pd.DataFrame(differences, columns=COLUMNS),
        AGAINST_PAPER: pd.DataFrame(against_paper(found.summaries, found.paper), columns=[f.name for f in fields(DiffRow)]),
    }
    for name, table in files.items():
        with replacing(folder / name) as part:
            table.to_csv(part, index=False, float_format="%.6f", lineterminator="\n")


def _difference(task: str, c: Comparison) -> tuple[str | float | None, ...]:
    """One difference as a row of :data:`COLUMNS`."""
    low, high = c.delta.interval or (None, None)
    per_seed = " ".join(f"{value:.6f}" for value in c.per_seed)
    return (
        *(task, c.label, c.arm, c.reference, c.delta.value, low, high, c.delta.stderr),
        *(" ".join(map(str, c.seeds)), per_seed, c.images, c.prompts, c.equal_terms),
    )
