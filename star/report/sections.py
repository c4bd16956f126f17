"""The chapters of a report, from what was found."""

from collections.abc import Callable, Mapping, Sequence

from evaluators.geneval.prompts import TAGS
from star.common.numbers import MISSING, estimate, number
from star.method.arms import ABLATION, REFERENCE
from star.records import diff, tables
from star.records.comparison import Comparison
from star.records.names import measured_on_own_task, method_label, reading_order
from star.report import pictures
from star.report.ablation import ablation
from star.report.blocks import ONE_SEED, Block, Section, Table, Text, sizes
from star.report.collection import Collection, base_of, families, titled
from star.report.cost import cost
from star.report.cross_task import elsewhere
from star.report.ending import ending
from star.report.first_updates import first_updates
from star.report.gradient import gradients
from star.report.influence import influences
from star.report.learning import learning
from star.report.opening import opening
from star.report.planned import QUESTION, SCORE, corrected, planned, planned_tests, says_of_check, says_of_learning
from star.report.provenance import made
from star.report.tags import tags
from star.report.uncertainty import uncertainty
from star.report.verdict import says

STATUS = {
    diff.REPRODUCED: "ours agrees with the paper's number, and its interval is narrow",
    diff.WITHIN_NOISE: "ours agrees with the paper's number, but its interval is too wide to tell",
    diff.DIFFERS: "the interval of the difference excludes 0",
    diff.OTHER_MEAN: "ours differs, but the source does not say how it averaged, and by the other mean they agree",
    diff.PARTIAL_BUDGET: "ours was trained with less than half or more than twice the updates or images of the published "
    "training, or, where those are not known, with less than half of Flow-GRPO's; nothing is concluded",
    diff.NOT_RUN: "this project has not measured it",
    diff.NOT_COMPARABLE_MINI: "ours comes from the small embedded model; no difference is computed",
    diff.NOT_COMPARABLE_PROTOCOL: "ours comes from another evaluator or from images drawn in another way",
    diff.NO_PAPER_VALUE: "no number from the paper is known",
}
TWO_SEEDS = (
    "Two seeds: their t-interval is 12.7 times as wide as the distance between them. It can exceed the range of the score, "
    "and is very narrow where they agree by chance."
)
OTHER_SEEDS = (
    "Not all arms have the same seeds, so their means, areas and costs rest on different seeds. The paired differences of the "
    "ablation use the seeds that both arms have."
)
RULES = (
    "GenEval's rules. Official: everything the prompt names is there; more of it is allowed, except when counting. Strict: "
    "exactly as many of each. Continuous: Flow-GRPO's training reward, with partial credit. Macro is the mean over the six "
    "kinds of prompt, micro over images."
)


def sections(found: Collection, compared: Mapping[str, Sequence[Comparison]]) -> list[Section]:
    """All chapters in reading order.

    Args:
        found: what the report is made from.
        compared: the :func:`star.report.ablation.comparisons` of each task.
    """
    return [
        opening(found),
        _findings(found),
        *_beside_the_shipped(found),
        planned_tests(found),
        _beside_the_paper(found),
        learning(found),
        ablation(found, compared),
        uncertainty(found),
        gradients(found),
        first_updates(found),
        influences(found),
        Section("maps", "Where the reward goes, before and after", parts=_per_task(found, "maps", pictures.filmstrip)),
        Section("samples", "Samples at the same noise", parts=_per_task(found, "samples", pictures.samples)),
        elsewhere(found),
        tags(found),
        cost(found),
        made(found),
    ]


def _findings(found: Collection) -> Section:
    blocks: list[Block] = []
    made = planned(found)
    tests = corrected(made)
    for task in found.tasks:
        if task in found.checks:
            blocks.append(says_of_check(task, made))
            continue
        there = found.methods(task)
        for variant in families(there):
            base = base_of(found, task, variant)
            star, reference, shuffled = (f"{arm}{variant}" for arm in ("star", REFERENCE, "star_shuffled"))
            absent = [m for m in ("base", *ABLATION) if (base if m == "base" else m + variant) not in there]
            pairs = (star, reference), (star, shuffled), (reference, base)
            gain, control, trained = (found.difference(task, *pair) for pair in pairs)
            title = titled(task, variant)
            oracle = found.difference(task, f"oracle_twins{variant}", reference)
            papers = None if variant else found.papers_gain(task)
            p = None if variant else tests.get((task, SCORE))
            tested = next((one.seeds for one in made if one.key == (task, SCORE, *QUESTION)), ())
            blocks.append(says(title, gain, control, trained, absent, found.mini, oracle, papers, p, tested))
            if not variant and (learning_too := says_of_learning(task, made, tests)):
                blocks.append(learning_too)
    blocks += [Text(sentence, missing=True) for sentence in found.missing]
    return Section("says", "What this says", blocks)


def _beside_the_shipped(found: Collection) -> list[Section]:
    """One's own results beside those that ship; empty in a report of the shipped ones."""
    if found.is_shipped:
        return []
    parts = [Section(f"shipped-{task}", task, list(ending(found, task))) for task in found.tasks]
    return [Section("shipped", "Beside the shipped results", parts=parts)]


def _beside_the_paper(found: Collection) -> Section:
    section = Section("paper", "Beside the paper")
    statuses: set[str] = set()
    for task in found.tasks:
        rows = _main_rows(found, task)
        statuses |= {row.status for row in rows}
        blocks = _main_blocks(found, task, rows) if rows else []
        section.parts.append(Section(f"paper-{task}", task, [*blocks, _all_metrics(found, task)]))
    section.parts.append(Section("paper-reading", "How to read these tables", _reading(found, statuses)))
    return section


def _reading(found: Collection, statuses: set[str]) -> list[Block]:
    """What the statuses, intervals and scores in the tables mean."""
    meanings = "; ".join(f"“{status}”: {meaning}" for status, meaning in STATUS.items() if status in statuses)
    blocks: list[Block] = [Text(f"Status. {meanings}.")] if meanings else []
    blocks.append(Text(f"Intervals. {tables.LEGEND}"))
    if any(summary.seeds == 2 for summary in found.summaries):
        blocks.append(Text(TWO_SEEDS))
    seeds = [
        {frozenset(found.seeds(task, method)) for method in found.methods(task) if found.trained(task, method)}
        for task in found.tasks
    ]
    if any(len(of_task) > 1 for of_task in seeds):
        blocks.append(Text(OTHER_SEEDS))
    if "geneval" in found.tasks:
        blocks.append(Text(RULES))
    return blocks


def _main_rows(found: Collection, task: str) -> list[diff.DiffRow]:
    """The task's main metric beside the paper's, in reading order: what was run, and the arms of the paper."""
    own = [summary for summary in found.summaries if summary.task == task and measured_on_own_task(summary.method)]
    rows = [
        row
        for row in diff.against_paper(own, found.paper)
        if row.metric == found.main_metric(task) and (row.seeds or row.method in tables.OF_THE_PAPER)
    ]
    order = reading_order(row.method for row in rows)
    return sorted(rows, key=lambda row: order.index(row.method))


def _main_blocks(found: Collection, task: str, rows: Sequence[diff.DiffRow]) -> list[Block]:
    label = tables.metric_label(task, rows[0].metric)
    head = ["method", "status", "paper", "this project [95 %]", "every seed"]
    lines = [_paper_line(found, row) for row in rows]
    size = sizes(s for row in rows if (s := found.summary(row.task, row.metric, row.method, row.protocol)))
    blocks: list[Block] = [Table(f"{task}, {label}: the paper's number and ours, {size}", head, lines, numbers=2)]
    if source := sorted({row.source for row in rows if row.source}):
        blocks.append(Text(f"Published numbers: {'; '.join(source)}."))
    return blocks


def _paper_line(found: Collection, row: diff.DiffRow) -> list[str]:
    summary = found.summary(row.task, row.metric, row.method, row.protocol)
    ours = estimate(summary.shown) if summary else MISSING
    if summary and summary.shown.interval and summary.seeds == 1 and summary.updates:
        ours += ONE_SEED
    seeds = ", ".join(number(value) for value in summary.values) if summary else MISSING
    published = row.reference or ("not known" if row.source else MISSING)
    protocols = {s.protocol for s in found.summaries if (s.task, s.metric, s.method) == (row.task, row.metric, row.method)}
    name = method_label(row.method) + (f" ({row.protocol})" if len(protocols) > 1 else "")
    return [name, row.status, published, ours, seeds]


def _all_metrics(found: Collection, task: str) -> Table:
    """The table of :mod:`star.records.tables`, as a block; GenEval's tags have a chapter of their own."""
    own = [summary for summary in found.summaries if summary.task == task and measured_on_own_task(summary.method)]
    lines = tables.table(task, own, found.paper)
    columns = [column for column, name in enumerate(lines[0]) if name not in TAGS]
    head, *rows = [[line[column].replace("**", "") for column in columns] for line in lines]
    return Table(f"{task}, all metrics: mean over seeds, and below it the published number", head, rows, numbers=2)


def _per_task(found: Collection, anchor: str, block: Callable[[Collection, str], Block]) -> list[Section]:
    return [Section(f"{anchor}-{task}", task, [block(found, task)]) for task in found.tasks if task not in found.checks]
