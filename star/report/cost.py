"""What training cost: wall-clock time of each arm, and its parts."""

import numpy as np
import pandas as pd

from star.common.numbers import MISSING, number
from star.method.arms import REFERENCE
from star.records.names import family, method_label
from star.report.blocks import Block, Section, Table, Text
from star.report.collection import Collection

CAUTION = "whatever else the machines did"
PARTS = {"sampling_seconds": "sampling and judging", "update_seconds": "update"}


def cost(found: Collection) -> Section:
    """The chapter."""
    section = Section("cost", "What training cost")
    for task in found.tasks:
        section.blocks += [*_runs(found, task), *_epochs(found, task)]
    if not section.blocks:
        section.blocks.append(Text("Nothing was trained here.", missing=True))
        return section
    section.blocks.append(
        Text(
            "Where runs shared a machine or used different ones, these times and ratios say nothing about arms. The cost of "
            "maps is measured by `star bench overhead`, alternating with and without them in one process."
        )
    )
    return section


def _runs(found: Collection, task: str) -> list[Block]:
    """The times of whole runs, from the result files."""
    runs = {}
    for method in found.methods(task):
        of_method = {r.seed: r for r in found.rows if (r.task, r.method) == (task, method) and r.seconds and r.images_seen}
        if of_method:
            runs[method] = list(of_method.values())
    pace = {method: float(np.mean([1000 * r.seconds / r.images_seen for r in rows])) for method, rows in runs.items()}
    lines = [
        [
            method_label(method),
            str(len(rows)),
            f"{min(r.updates for r in rows):,}",
            f"{min(r.images_seen for r in rows):,}",
            number(float(np.mean([r.seconds for r in rows])), 0),
            number(pace[method], 1),
            *_ratios(pace, method),
        ]
        for method, rows in runs.items()
    ]
    head = ["method", "runs", "updates", "images", "seconds of a run", "seconds per 1,000 images", *AGAINST]
    return [Table(f"{task}: wall-clock time of training, mean over seeds; {CAUTION}", head, lines)] if lines else []


def _epochs(found: Collection, task: str) -> list[Block]:
    """The times of epochs and their parts, as far as the curves have them."""
    if found.curves is None or not {*PARTS} <= {*found.curves}:
        return []
    own = found.curves[found.curves["task"] == task].dropna(subset=list(PARTS))
    medians = {method: _median(own[own["method"] == method]) for method in found.methods(task)}
    whole = {method: parts[-1] for method, parts in medians.items() if parts}
    lines = [
        [method_label(method), *(number(part, 2) for part in medians[method]), *_ratios(whole, method)] for method in whole
    ]
    head = ["method", *PARTS.values(), "together", *AGAINST]
    return [Table(f"{task}: seconds of an epoch, median over epochs and seeds; {CAUTION}", head, lines)] if lines else []


AGAINST = ["relative to Flow-GRPO", "relative to dense_uniform"]


def _ratios(times: dict[str, float], method: str) -> list[str]:
    others = (arm + family(method) for arm in (REFERENCE, "dense_uniform"))
    return [f"× {times[method] / times[other]:.2f}" if other in times else MISSING for other in others]


def _median(lines: pd.DataFrame) -> list[float]:
    """The median over epochs of each part, and of their sum."""
    parts = lines[list(PARTS)]
    return [*map(float, parts.median()), float(parts.sum(axis=1).median())] if len(parts) else []
