"""The numbers that a report works out, as CSV files for programs."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pandas as pd

from star.common.files import replacing
from star.records.comparison import Comparison
from star.records.diff import against_paper
from star.report.collection import Collection

FOLDER = "tables"
DIFFERENCES = "differences.csv"
AGAINST_PAPER = "against_paper.csv"


def write(found: Collection, compared: Mapping[str, Sequence[Comparison]]) -> None:
    """``tables/differences.csv`` and ``tables/against_paper.csv`` in the results folder."""
    folder = found.folder / FOLDER
    folder.mkdir(exist_ok=True)
    files = {
        DIFFERENCES: [_difference(task, c) for task, own in compared.items() for c in own],
        AGAINST_PAPER: [asdict(row) for row in against_paper(found.summaries, found.paper)],
    }
    for name, lines in files.items():
        with replacing(folder / name) as part:
            pd.DataFrame(lines).to_csv(part, index=False, float_format="%.6f", lineterminator="\n")


def _difference(task: str, c: Comparison) -> dict[str, Any]:
    low, high = c.delta.interval or (None, None)
    return {
        "task": task,
        "score": c.label,
        "arm": c.arm,
        "reference": c.reference,
        "difference": c.delta.value,
        "low": low,
        "high": high,
        "stderr": c.delta.stderr,
        "seeds": " ".join(map(str, c.seeds)),
        "per_seed": " ".join(f"{value:.6f}" for value in c.per_seed),
        "images": c.images,
        "prompts": c.prompts,
        "trained_alike": c.equal_terms,
    }
