"""Results compared with a reference, published numbers or another result file, with a verdict for every row.

The verdict on a number that both sides have rests on the 95 % interval of the difference, ours - reference. A published
number has its own interval, computed from its numbers of images and prompts if they are known (:func:`published_estimate`). To
allow for its rounding, the interval of the difference is widened by half a unit of its last digit.

* ``partial budget``: our training had less than half or more than twice the updates, or the images, of the published one;
  nothing is concluded. If those are not known, only less than half of Flow-GRPO's counts as partial. Both are those of the
  task that it was trained for.
* ``differs``: 0 is outside the interval.
* ``agrees by the other mean``: 0 is outside, but the source does not say how it averaged, and by the other mean 0 is inside.
* ``within noise``: 0 is inside, but our own interval is too wide to show a difference that matters: its half-width is above
  the metric's resolution (:data:`RESOLUTION`, :data:`RESOLUTION_OF_RATES`).
* ``reproduced``: 0 is inside, and ours is narrow enough. Without that condition any noisy run would "reproduce".

A number without an interval (one seed and no standard error) must agree to within the rounding.

Mini numbers answer another question than the paper's and get no verdict (``not comparable (mini)``). Numbers from other
engines or from images drawn in another way get none either, nor do two result files' numbers under different protocols
(``not comparable (protocol)``). Rows of the reference that were not run are kept as ``not run``.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import hypot
from pathlib import Path
from typing import Any

from star.common.console import console_for_tables, table, tell
from star.common.errors import UserError
from star.common.numbers import MISSING, estimate, signed
from star.common.statistics import Estimate, normal_interval
from star.method.arms import REFERENCE
from star.records.code import ROOT
from star.records.names import MethodName, ProtocolName, is_mini, measured_on_own_task, method_label
from star.records.results import PaperRow, is_paper, read, read_paper
from star.records.summary import Summary, summarise, unlike
from star.records.tables import OF_THE_PAPER, columns, metric_label, metric_labels

REPRODUCED = "reproduced"
WITHIN_NOISE = "within noise"
DIFFERS = "differs"
OTHER_MEAN = "agrees by the other mean"
PARTIAL_BUDGET = "partial budget"
NOT_RUN = "not run"
NOT_COMPARABLE_MINI = "not comparable (mini)"
NOT_COMPARABLE_PROTOCOL = "not comparable (protocol)"
NO_PAPER_VALUE = "no paper value"
NO_REFERENCE_VALUE = "no reference value"
COLOURS = {REPRODUCED: "green", WITHIN_NOISE: "yellow", OTHER_MEAN: "yellow", DIFFERS: "red"}
UNSTATED = "unstated mean"
"""Marks the protocol of a published GenEval score filed under both means, as its source does not say how it averaged."""

# Half-width up to which an interval can confirm a number; independent evaluations of SD3.5 Medium agree to about 0.05.
RESOLUTION = dict.fromkeys(("pickscore", "aesthetic", "deqa", "image_reward", "unified_reward"), 0.05)
RESOLUTION_OF_RATES = 0.02

PUBLISHED_ENGINES = {
    "geneval": r"(mask2former|mmdet)(?!\S*-unofficial)[^+]*\+(clip-vit-large-patch14@|open_clip-9ce2e8a8)",
    "ocr": r"paddleocr-[^+]*\+PP-OCRv4_mobile_det\+en_PP-OCRv4_mobile_rec\b",
    "pickscore": "PickScore_v1@",
}
"""For each task, how the names of engines (with all their models) begin whose scores are comparable with published ones."""


@dataclass(frozen=True)
class DiffRow:
    """One number of ours beside the reference's.

    Attributes:
        task, metric, method: what is compared.
        status: one of this module's verdicts.
        ours: mean over seeds; None if it was not run.
        low, high: its 95 % interval; None if there is none.
        seeds, images, updates: behind ``ours``; 0 if it was not run.
        protocol: of ours; empty if it was not run.
        reference: the other number with its printed digits; None if there is none.
        delta: ours - reference; None if one is missing or they are not comparable.
        delta_low, delta_high: its 95 % interval, without the widening for rounding; None if there is none.
        reference_protocol, source, note: where the reference comes from.
    """

    task: str
    metric: str
    method: str
    status: str
    ours: float | None = None
    low: float | None = None
    high: float | None = None
    seeds: int = 0
    images: int = 0
    updates: int = 0
    protocol: str = ""
    reference: str | None = None
    delta: float | None = None
    delta_low: float | None = None
    delta_high: float | None = None
    reference_protocol: str = ""
    source: str = ""
    note: str = ""


def diff(ours: Path, reference: Path | None = None) -> list[DiffRow]:
    """Compare a result file with a reference: ``results/paper.csv`` by default, or any result file.

    Rows are ordered by task: first the arms in reading order, then other methods that were run, then other systems.

    Raises:
        UserError: a file is missing, does not follow its schema, or holds no row.
    """
    reference = find_paper() if reference is None else reference
    summaries = _summaries(ours)
    if not summaries:
        raise UserError(f"{ours}: no results in it; run `star reproduce geneval` first")
    if is_paper(reference):
        rows = against_paper(summaries, read_paper(reference))
    else:
        rows = against_results(summaries, _summaries(reference), source=str(reference))
    return sorted(rows, key=_place)


def _summaries(file: Path) -> list[Summary]:
    """What a result file says; seeds that are not pooled are told."""
    found = summarise(read(file))
    for line in unlike(found):
        tell(f"{file}: {line}")
    return found


def against_paper(summaries: Sequence[Summary], paper: Iterable[PaperRow]) -> list[DiffRow]:
    """Every summary, and every published row of the same tasks, matched by (task, metric, method)."""
    paper = list(paper)
    tasks = {summary.task for summary in summaries}
    numbers = {row.key: row for row in paper if row.task in tasks}
    budgets = {(row.task, row.method): row for row in paper if row.updates}
    rows = []
    for summary in summaries:
        row = _own(summary)
        answer = numbers.get((summary.task, summary.metric, summary.method))
        if answer is None:
            row = replace(row, status=NO_PAPER_VALUE)
        elif answer.value is None:
            row = replace(_with_published(row, answer), status=NO_PAPER_VALUE)
        elif is_mini(summary.protocol):
            row = replace(_with_published(row, answer), status=NOT_COMPARABLE_MINI)
        elif not as_published(summary.task, summary.protocol):
            row = replace(_with_published(row, answer), status=NOT_COMPARABLE_PROTOCOL)
        else:
            theirs = published_estimate(answer, _base(answer, numbers.values()), summary.spread)
            delta, width = difference(summary.estimate, theirs), summary.estimate.half_width
            row = _judged(_with_published(row, answer), delta, answer.rounding, width)
            if _partial(summary, budgets):
                row = replace(row, status=PARTIAL_BUDGET)
        rows.append(row)
    rows = [_by_either_mean(row, rows) for row in rows]
    ran = {(summary.task, summary.metric, summary.method) for summary in summaries}
    return rows + [_with_published(DiffRow(*key, NOT_RUN), row) for key, row in numbers.items() if key not in ran]


def published_estimate(row: PaperRow, base: PaperRow | None, spread: float | None) -> Estimate:
    """A published number with the normal interval of its standard error over prompts, for which no source has a number.

    It is the larger of two: that of a rate of independent images, ``sqrt(p (1 - p) / images)``, and that of scores which
    differ between prompts as much as ours do, ``spread / sqrt(prompts)``. That another training would have come to another
    number is not in it: Flow-GRPO's author got 0.9408 where the paper has 0.95.

    Args:
        row: has a value.
        base: a published row of the base on the same images; its numbers of images and prompts count if the row has none.
        spread: standard deviation of our own score over prompts; None if it is not known.
    """
    value, rows = float(row.value or 0), [row, *([base] if base else [])]
    images, prompts = (next(filter(None, found), None) for found in zip(*((r.images, r.prompts) for r in rows), strict=True))
    of_images = (value * (1 - value) / images) ** 0.5 if images and 0 <= value <= 1 else 0.0
    of_prompts = spread / prompts**0.5 if spread and prompts else 0.0
    return normal_interval(value, max(of_images, of_prompts))


def _base(row: PaperRow, paper: Iterable[PaperRow]) -> PaperRow | None:
    """The base's published row for the metric, or else its row on the most images: an overall score, by whichever mean."""
    bases = [other for other in paper if (other.task, other.method) == (row.task, "base")]
    same = [other for other in bases if other.metric == row.metric]
    return max(same or bases, key=lambda other: other.images or 0, default=None)


def _partial(summary: Summary, budgets: Mapping[tuple[str, str], PaperRow]) -> bool:
    """Whether a training was too short or too long to be compared with the published one, whatever the metric."""
    name = MethodName.parse(summary.method)
    own, borrowed = (budgets.get((name.trained_for or summary.task, method)) for method in (name.at_home, REFERENCE))
    told = own or borrowed
    if told is None or not summary.updates:
        return False
    pairs = [(summary.updates, told.updates), (summary.images_seen, told.images_seen)]
    return any(known and (ours < known / 2 or (told is own and ours > 2 * known)) for ours, known in pairs)


def _by_either_mean(row: DiffRow, rows: Iterable[DiffRow]) -> DiffRow:
    """Change a row's ``differs`` if the published score is of an unstated mean and ours agrees by the other mean."""
    if row.status != DIFFERS or UNSTATED not in row.reference_protocol:
        return row
    place = row.task, row.method, row.protocol, row.reference
    others = (o for o in rows if (o.task, o.method, o.protocol, o.reference) == place and UNSTATED in o.reference_protocol)
    return replace(row, status=OTHER_MEAN) if any(o.status in (REPRODUCED, WITHIN_NOISE) for o in others) else row


def as_published(task: str, protocol: str) -> bool:
    """Whether an evaluation is comparable with published ones, by its engine, its weights and the way images were drawn."""
    name = ProtocolName.parse(protocol)
    return bool(re.match(PUBLISHED_ENGINES.get(task, ""), name.engine)) and not name.changed


def against_results(ours: Sequence[Summary], theirs: Sequence[Summary], source: str) -> list[DiffRow]:
    """Two sets of results, matched by (task, metric, protocol, method); another protocol is shown, but not compared."""
    answers = {_key(summary): summary for summary in theirs}
    any_protocol = {(summary.task, summary.metric, summary.method): summary for summary in theirs}
    rows, used = [], set()
    for summary in ours:
        row = _own(summary)
        answer = answers.get(_key(summary)) or any_protocol.get((summary.task, summary.metric, summary.method))
        if answer is None:
            rows.append(replace(row, status=NO_REFERENCE_VALUE))
            continue
        used.add(_key(answer))
        row = _with_result(row, answer, source)
        if answer.protocol == summary.protocol:
            widths = [one.estimate.half_width for one in (summary, answer) if one.estimate.half_width is not None]
            row = _judged(row, difference(summary.estimate, answer.estimate), 0.0, max(widths, default=None))
        elif is_mini(answer.protocol) != is_mini(summary.protocol):
            row = replace(row, status=NOT_COMPARABLE_MINI)
        else:
            row = replace(row, status=NOT_COMPARABLE_PROTOCOL)
        rows.append(row)
    missing = [summary for summary in theirs if _key(summary) not in used]
    return rows + [_with_result(DiffRow(s.task, s.metric, s.method, NOT_RUN), s, source) for s in missing]


def difference(ours: Estimate, theirs: Estimate) -> Estimate:
    """Ours - theirs for independent estimates, with an interval if both have one.

    The interval is Newcombe's square-and-add (1998, method 10; Zou and Donner's MOVER): exact for normal intervals,
    good for Wilson's, and wider than need be for t-intervals over few seeds. Two runs on the same prompts and noise are
    correlated, so this is on the safe side; the paired bootstrap, which needs the images' own scores, is sharper.
    """
    value = ours.value - theirs.value
    if ours.interval is None or theirs.interval is None:
        return Estimate(value, None, None)
    below = hypot(ours.value - ours.interval[0], theirs.interval[1] - theirs.value)
    above = hypot(ours.interval[1] - ours.value, theirs.value - theirs.interval[0])
    return Estimate(value, None, (value - below, value + above))


def verdict(metric: str, delta: Estimate, rounding: float, width: float | None) -> str:
    """The verdict on one difference, as defined in the module's docstring.

    Args:
        metric: decides the resolution.
        delta: ours - reference.
        rounding: half a unit in the reference's last digit.
        width: half-width of the interval that has to be narrow: ours, or the wider of two files'; None if there is none.
    """
    low, high = delta.interval or (delta.value, delta.value)
    # A value at the very edge of the rounding, such as 0.955 for 0.95, must not depend on the last bit of a float.
    slack = rounding + 1e-9
    if low - slack > 0 or high + slack < 0:
        return DIFFERS
    wide = width is not None and width > RESOLUTION.get(metric, RESOLUTION_OF_RATES)
    return WITHIN_NOISE if wide else REPRODUCED


def find_paper() -> Path:
    """``results/paper.csv`` of this checkout, or else of the current directory.

    Raises:
        UserError: neither exists.
    """
    for folder in (ROOT, Path.cwd()):
        path = folder / "results" / "paper.csv"
        if path.exists():
            return path
    raise UserError(f"no results/paper.csv in {ROOT} or in {Path.cwd()}; run from the repository, or name the reference file")


def main_rows(rows: Sequence[DiffRow]) -> list[DiffRow]:
    """The rows to show at a glance: the metrics of the task's table for what was run and for the arms of the paper.

    Of what the reference has no number for, the main metric alone is shown, of trainings on the task. Published numbers of
    other systems and side metrics are left out, unless they differ; JSON has every row.
    """
    measured: dict[str, set[str]] = {row.task: set() for row in rows}
    for row in rows:
        measured[row.task] |= {row.metric} if row.seeds else set()

    def shown(row: DiffRow) -> bool:
        metrics = columns(row.task, measured[row.task] or {row.metric})
        if row.reference is None:
            main = next((metric for metric in metrics if metric in measured[row.task]), None)
            return row.metric == main and measured_on_own_task(row.method)
        return row.status == DIFFERS or (row.metric in metrics and (row.seeds > 0 or row.method in OF_THE_PAPER))

    return [row for row in rows if shown(row)]


def exit_code(rows: Iterable[DiffRow]) -> int:
    """1 if a comparable number differs beyond its interval, else 0."""
    return int(any(row.status == DIFFERS for row in rows))


def run(ours: Path, reference: Path | None, as_json: bool) -> int:
    """Print the comparison (a table of :func:`main_rows`, or everything as JSON) and return the exit code.

    Raises:
        UserError: as :func:`diff`; the command line makes it exit code 2.
    """
    rows = diff(ours, reference)
    if as_json:
        print(to_json(rows))
    else:
        _print(rows)
    return exit_code(rows)


def to_json(rows: Sequence[DiffRow]) -> str:
    """Every row and how often each status occurs, as JSON text."""
    counts = Counter(row.status for row in rows)
    document = {"counts": counts, "exit_code": exit_code(rows), "rows": [asdict(row) for row in rows]}
    return json.dumps(document, indent=2)


HEADINGS = ("method", "metric", "reference", "ours [95 %]", "difference", "seeds", "images", "status")


def _print(rows: Sequence[DiffRow]) -> None:
    out = console_for_tables()
    shown = main_rows(rows)
    for task in dict.fromkeys(row.task for row in shown):
        drawn = table(task, HEADINGS)
        for row in shown:
            if row.task == task:
                drawn.add_row(*_cells(row), style=COLOURS.get(row.status, "dim" if row.status == NOT_RUN else ""))
        out.print(drawn)
    counts = Counter(row.status for row in shown)
    out.print("; ".join(f"{status}: {count}" for status, count in sorted(counts.items())))
    if any(row.seeds == 1 and row.updates for row in shown):
        out.print("with one seed the interval is over prompts alone; that another training ends elsewhere is not in it")
    if len(rows) > len(shown):
        out.print(f"{len(rows) - len(shown)} more rows (other systems, side metrics, numbers of one side): --json shows them")


def _cells(row: DiffRow) -> list[str]:
    interval = None if row.low is None or row.high is None else (row.low, row.high)
    ours = MISSING if row.ours is None else estimate(Estimate(row.ours, None, interval), 4)
    delta = MISSING if row.delta is None else signed(row.delta, 4)
    counts = [f"{row.seeds}", f"{row.images:,}"] if row.seeds else [MISSING, MISSING]
    return [
        method_label(row.method),
        metric_label(row.task, row.metric),
        (row.reference or MISSING).replace("-", "\N{MINUS SIGN}"),
        ours,
        delta,
        *counts,
        row.status,
    ]


def _place(row: DiffRow) -> tuple[Any, ...]:
    """Sort key: the order that :func:`diff` promises, metrics in the order of the task's table."""
    metrics, arms = list(metric_labels(row.task, [row.metric])), list(OF_THE_PAPER)
    column = metrics.index(row.metric) if row.metric in metrics else len(metrics)
    group = arms.index(row.method) if row.method in arms else len(arms) + (row.seeds == 0)
    return row.task, group, row.method, column, row.metric, row.protocol


def _key(summary: Summary) -> tuple[str, str, str, str]:
    return summary.task, summary.metric, summary.protocol, summary.method


def _own(summary: Summary) -> DiffRow:
    """Our side of a row; the verdict is still to come."""
    low, high = summary.shown.interval or (None, None)
    return DiffRow(
        summary.task,
        summary.metric,
        summary.method,
        status="",
        ours=summary.estimate.value,
        low=low,
        high=high,
        seeds=summary.seeds,
        images=summary.images,
        updates=summary.updates,
        protocol=summary.protocol,
    )


def _judged(row: DiffRow, delta: Estimate, rounding: float, width: float | None) -> DiffRow:
    low, high = delta.interval or (None, None)
    status = verdict(row.metric, delta, rounding, width)
    return replace(row, status=status, delta=delta.value, delta_low=low, delta_high=high)


def _with_published(row: DiffRow, paper: PaperRow) -> DiffRow:
    value = None if paper.value is None else str(paper.value)
    return replace(row, reference=value, reference_protocol=paper.protocol, source=paper.source, note=paper.note)


def _with_result(row: DiffRow, answer: Summary, source: str) -> DiffRow:
    value = f"{answer.estimate.value:.6f}"
    return replace(row, reference=value, reference_protocol=answer.protocol, source=source)
