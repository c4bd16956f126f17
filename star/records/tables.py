"""Markdown tables of results, each row of this project above the published row that corresponds to it."""

from collections.abc import Collection, Iterable, Sequence

from evaluators.geneval.prompts import TAGS
from star.common import markdown as written
from star.common.numbers import MISSING, estimate, sample_size, with_error
from star.method.arms import ARMS
from star.records.names import is_mini, measured_on_own_task, method_label
from star.records.results import PaperRow, Row
from star.records.summary import Summary, summarise, unlike

OF_THE_PAPER = ("base", *(name for name, arm in ARMS.items() if arm.published))
"""The paper's methods, in reading order; whatever else a file holds (the controls) follows in alphabetical order."""

DIVERSITY = "diversity"
"""The metric for the diversity of images, which no evaluator judges."""

METRICS = {
    "geneval": {
        "geneval_official_macro": "official macro",
        "geneval_official_micro": "official micro",
        "geneval_strict_macro": "strict macro",
        "geneval_continuous_macro": "continuous macro",
        **{f"geneval_official_{tag}": tag for tag in TAGS},
        DIVERSITY: "diversity",
    },
    "ocr": {"ocr_accuracy": "accuracy", "ocr_exact": "exact", DIVERSITY: "diversity"},
    "pickscore": {"pickscore": "PickScore", DIVERSITY: "diversity"},
    "drawbench": {
        "aesthetic": "aesthetic",
        "deqa": "DeQA",
        "image_reward": "ImageReward",
        "pickscore": "PickScore",
        "unified_reward": "UnifiedReward",
    },
}
MINI_WARNING = (
    "Rows marked **mini** come from the small embedded model with its own prompts and evaluators. They are not comparable "
    "with the published numbers below them, which are SD3.5 Medium's."
)
LEGEND = (
    "One seed: value ± standard error over prompts. Several seeds: mean over seeds [95 % t-interval over seeds; over prompts "
    "where all seeds agree]. A rate of exactly 0 or 1: [Wilson's 95 % interval over prompts]. –: no such number."
)


def markdown(rows: Iterable[Row], paper: Iterable[PaperRow]) -> str:
    """One table per task in ``rows``: for every method a row of this project and, beneath it, the published one.

    An arm that the paper has and that was not run is shown as "not run".
    """
    summaries = summarise(rows)
    tasks = sorted({summary.task for summary in summaries})
    return "\n".join(_section(task, [s for s in summaries if s.task == task], paper) for task in tasks)


def table(task: str, summaries: Sequence[Summary], paper: Iterable[PaperRow]) -> list[list[str]]:
    """The cells of a task's table, the head first: method, whose numbers, seeds, and the metrics."""
    published = {row.key: row for row in paper}
    metrics = columns(task, {summary.metric for summary in summaries})
    methods = {summary.method for summary in summaries}
    arms_published = [arm for arm in OF_THE_PAPER if any((task, metric, arm) in published for metric in metrics)]
    ordered = [arm for arm in OF_THE_PAPER if arm in methods or arm in arms_published] + sorted(methods - set(OF_THE_PAPER))
    lines = [["method", "numbers", "seeds", *metrics.values()]]
    for method in ordered:
        lines += _own_lines(method, metrics, [s for s in summaries if s.method == method])
        answers = [published.get((task, metric, method)) for metric in metrics]
        if any(answers):
            lines.append([method_label(method), "published", "", *map(_published_cell, answers)])
    return lines


def metric_labels(task: str, found: Iterable[str]) -> dict[str, str]:
    """The columns of a task's table, metric -> heading; a task unknown here shows every metric it has."""
    return METRICS.get(task) or {metric: metric for metric in sorted(set(found))}


def metric_label(task: str, metric: str) -> str:
    """The heading of one metric."""
    return metric_labels(task, [metric]).get(metric, metric)


def columns(task: str, found: Collection[str]) -> dict[str, str]:
    """Like :func:`metric_labels`, but every metric that was found if an evaluator other than the task's own judged."""
    labels, judged = metric_labels(task, found), set(found) - {DIVERSITY}
    return labels if not judged or judged & labels.keys() else {metric: metric for metric in sorted(found)}


def _section(task: str, summaries: Sequence[Summary], paper: Iterable[PaperRow]) -> str:
    head, *rows = table(task, summaries, paper)
    head, rows = list(map(written.escape, head)), [[written.escape(row[0]), *row[1:]] for row in rows]
    lines = [f"### {written.escape(task)}", "", *written.table(head, rows, numbers=2)]
    notes = [LEGEND, *map(written.escape, unlike(summaries))] + [MINI_WARNING] * any(
        is_mini(summary.protocol) for summary in summaries
    )
    return "\n".join([*lines, "", *notes, "", *_protocol_lines(summaries), ""])


def _own_lines(method: str, metrics: dict[str, str], summaries: Sequence[Summary]) -> list[list[str]]:
    """One line per protocol that the method was measured with, or one that says "not run"."""
    if not summaries:
        return [[method_label(method), "this project", "0", "not run", *[MISSING] * (len(metrics) - 1)]]
    lines = []
    for protocol in sorted({summary.protocol for summary in summaries}):
        cells = {summary.metric: summary for summary in summaries if summary.protocol == protocol}
        origin = "this project, **mini**" if is_mini(protocol) else "this project"
        seeds = str(max(summary.seeds for summary in cells.values()))
        values = [_own_cell(cells.get(metric)) for metric in metrics]
        lines.append([method_label(method), origin, seeds, *values])
    return lines


def _own_cell(summary: Summary | None) -> str:
    if summary is None:
        return MISSING
    shown = summary.shown
    if shown.interval and (summary.seeds > 1 or shown.stderr == 0):
        return estimate(shown)
    return with_error(shown.value, shown.stderr)


def _published_cell(row: PaperRow | None) -> str:
    if row is None:
        return MISSING
    return "not known" if row.value is None else str(row.value).replace("-", "\N{MINUS SIGN}")


def _protocol_lines(summaries: Sequence[Summary]) -> list[str]:
    """What each protocol was measured on, so that no number appears without it."""
    lines = []
    for protocol in sorted({s.protocol for s in summaries}):
        own = [s for s in summaries if s.protocol == protocol]
        sizes = []
        for at_home, what in ((True, ""), (False, " after training for another task")):
            if of := [s for s in own if measured_on_own_task(s.method) == at_home]:
                widest = max(of, key=lambda summary: summary.images)
                sizes.append(sample_size(widest.images, widest.prompts) + what)
        lines.append(f"- `{protocol}`: {'; '.join(sizes)}")
    return lines
