"""The chapters of a report, from what was found."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from evaluators.geneval.prompts import TAGS
from star.bench import tables
from star.bench.comparison import Comparison, compare, paired_scores
from star.bench.diff import DiffRow, against_paper
from star.bench.figures import dots_svg, forest_svg
from star.bench.report import pictures
from star.bench.report.blocks import MISSING, Block, Drawing, Section, Table, Text, estimate, number, signed
from star.bench.report.collect import METHODS, REFERENCE, TASKS, Collection, primary
from star.bench.report.learning import learning
from star.bench.report.made import made
from star.bench.report.says import says
from star.bench.report.uncertainty import uncertainty
from star.bench.statistics import Estimate
from star.bench.tables import method_label


def sections(found: Collection) -> list[Section]:
    """All chapters in reading order."""
    compared = {task: comparisons(found, task) for task in found.tasks}
    return [
        _findings(found),
        _beside_the_paper(found),
        learning(found),
        _ablation(found, compared),
        uncertainty(found),
        Section("maps", "Where the reward goes, before and after", parts=_per_task(found, "maps", pictures.filmstrip)),
        Section("samples", "Samples at the same noise", parts=_per_task(found, "samples", pictures.samples)),
        _elsewhere(found),
        _tags(found),
        _cost(found),
        made(found),
    ]


def comparisons(found: Collection, task: str, reference: str = REFERENCE) -> list[Comparison]:
    """Every other method minus the reference on every score of the task."""
    if found.images is None:
        return []
    images = found.images[found.images["task"] == task]
    made = (
        compare(images, method, reference, column, label)
        for column, label in paired_scores(task).items()
        for method in found.methods(task)
        if method != reference
    )
    return [comparison for comparison in made if comparison]


def _findings(found: Collection) -> Section:
    blocks: list[Block] = []
    for task in found.tasks:
        absent = [method for method in METHODS if method not in found.methods(task)]
        gain, control, trained = (
            _main(found, task, *pair) for pair in (("star", REFERENCE), ("star", "star_shuffled"), (REFERENCE, "base"))
        )
        blocks.append(says(task, gain, control, trained, absent, found.mini))
    blocks += [Text(sentence, missing=True) for sentence in found.missing]
    return Section("says", "What this says", blocks)


def _main(found: Collection, task: str, arm: str, reference: str) -> Comparison | None:
    """The comparison of two methods on the task's main score."""
    if found.images is None:
        return None
    images = found.images[found.images["task"] == task]
    column, label = next(iter(paired_scores(task).items()), ("", ""))
    return compare(images, arm, reference, column, label)


def _beside_the_paper(found: Collection) -> Section:
    section = Section("paper", "Beside the paper")
    for task in found.tasks:
        metric = primary(task)
        own = [summary for summary in found.summaries if summary.task == task and ":" not in summary.method]
        shown = [
            row for row in against_paper(own, found.paper) if row.metric == metric and (row.seeds or row.method in tables.ARMS)
        ]
        blocks: list[Block] = []
        if metric and shown:
            label = tables.metric_labels(task, [metric]).get(metric, metric)
            order = [*METHODS, *sorted(row.method for row in shown if row.method not in METHODS)]
            shown.sort(key=lambda row: order.index(row.method))
            head = ["method", "status", "paper", "this project [95 %]", "every seed", "images of a run"]
            rows = [_paper_line(found, row) for row in shown]
            blocks.append(Table(f"{task}, {label}: the paper's number and ours", head, rows, numbers=2))
            if source := sorted({row.source for row in shown if row.source}):
                blocks.append(Text(f"Published numbers: {'; '.join(source)}."))
        blocks.append(_all_metrics(found, task))
        section.parts.append(Section(f"paper-{task}", task, blocks))
    section.blocks.append(Text(tables.LEGEND))
    return section


def _paper_line(found: Collection, row: DiffRow) -> list[str]:
    summary = found.summary(row.task, row.metric, row.method)
    ours = estimate(summary.estimate) if summary else MISSING
    seeds = ", ".join(number(value) for value in summary.values) if summary else MISSING
    size = f"{summary.images:,} of {summary.prompts:,} prompts" if summary else MISSING
    published = row.reference or ("not known" if row.source else MISSING)
    return [method_label(row.method), row.status, published, ours, seeds, size]


def _all_metrics(found: Collection, task: str) -> Table:
    """The table of :mod:`star.bench.tables`, as a block."""
    text = tables.markdown([row for row in found.rows if row.task == task and ":" not in row.method], found.paper)
    lines = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line.startswith("| ")]
    head, *rows = [[cell.replace("**", "") for cell in line] for line in lines]
    return Table(f"{task}, all metrics: mean over seeds, and beneath it what was published", head, rows, numbers=2)


def _ablation(found: Collection, compared: Mapping[str, Sequence[Comparison]]) -> Section:
    section = Section("ablation", "Ablation: every arm minus Flow-GRPO")
    section.blocks.append(
        Text(
            "Same prompts, same noise, image by image. With several training seeds the 95 % interval holds for new prompts "
            "and new trainings at once: prompts are resampled, seeds enter by Student's t. It is not corrected for the "
            "number of arms. Ticks above a line are single seeds."
        )
    )
    for task, found_here in compared.items():
        if not found_here:
            text = f"{task}: no image-by-image comparison with Flow-GRPO can be made from what is here."
            section.blocks.append(Text(text, missing=True))
            continue
        blocks: list[Block] = []
        for label in dict.fromkeys(comparison.label for comparison in found_here):
            own = [comparison for comparison in found_here if comparison.label == label]
            if not blocks:
                blocks += _forest(task, label, own)
            head = ["method", "minus Flow-GRPO [95 %]", "every seed", "prompts", "images of a seed"]
            blocks.append(Table(f"{task}, {label}: paired differences", head, [_difference(c) for c in own]))
        section.parts.append(Section(f"ablation-{task}", task, blocks))
    return section


def _forest(task: str, label: str, own: Sequence[Comparison]) -> list[Block]:
    # The base is far off and would squeeze the arms; it is in the table.
    rows = [(method_label(c.arm), c.delta, c.per_seed) for c in own if c.arm != "base"]
    if not rows:
        return []
    told = "; ".join(f"{arm} {signed(delta)}" for arm, delta, _ in rows)
    alt = f"{task}, {label}, minus Flow-GRPO, 95 % intervals: {told}."
    drawing = forest_svg(rows, f"{label}, minus Flow-GRPO", alt)
    return [Drawing(f"{task}: difference in {label}, with 95 % interval.", drawing)]


def _difference(c: Comparison) -> list[str]:
    seeds = ", ".join(signed(Estimate(value, None, None)) for value in c.per_seed)
    return [method_label(c.arm), signed(c.delta), seeds, str(c.prompts), str(c.images)]


def _per_task(found: Collection, anchor: str, block: Callable[[Collection, str], Block]) -> list[Section]:
    return [Section(f"{anchor}-{task}", task, [block(found, task)]) for task in found.tasks if task in TASKS]


def _elsewhere(found: Collection) -> Section:
    section = Section("elsewhere", "On the other tasks, and diversity")
    section.blocks.append(
        Text(
            "What a checkpoint gained on its own task it may have lost elsewhere. Each row is one arm trained for one task; "
            "in parentheses the distance from the base. Other tasks are scored with fewer images per prompt."
        )
    )
    columns = [task for task in TASKS if any(row.task == task for row in found.rows)]
    head = ["method", "trained for", *columns]
    measured = {task: primary(task) or "" for task in columns}
    rows = [row for m in METHODS for task in columns if (row := _elsewhere_line(found, m, task, measured))]
    base = ["base", "nothing", *(_value(found, task, measured[task], "base") for task in columns)]
    if len(columns) > 1 and rows:
        section.blocks.append(
            Table("Main score of each task (columns) after training for each task (rows)", head, [base, *rows], 2)
        )
    else:
        section.blocks.append(Text("Only one task was scored, so there is no cross-task table.", missing=True))
    for task in found.tasks:
        runs = {m: s for m in found.methods(task) if (s := found.summary(task, "diversity", m))}
        if not runs:
            section.blocks.append(Text(f"{task}: no diversity; it needs several images per prompt.", missing=True))
            continue
        line = ("base", runs["base"].estimate.value) if "base" in runs else None
        told = "; ".join(f"{method_label(m)} {estimate(s.estimate)}" for m, s in runs.items())
        alt = f"{task}: diversity of the images of a prompt, by method: {told}."
        dots = {method_label(m): {"seeds": s.values} for m, s in runs.items() if m != "base"}
        if dots:
            drawing = dots_svg(dots, "mean distance of two images of a prompt", alt, line)
            section.blocks.append(
                Drawing(f"{task}: diversity of a prompt's images, a dot per seed, a bar at their mean.", drawing)
            )
        rows = [[method_label(m), estimate(s.estimate), ", ".join(map(number, s.values))] for m, s in runs.items()]
        section.blocks.append(Table(f"{task}: diversity", ["method", "mean [95 %]", "every seed"], rows))
    return section


def _elsewhere_line(found: Collection, method: str, trained: str, measured: Mapping[str, str]) -> list[str] | None:
    names = {task: method if task == trained else f"{method}:{trained}" for task in measured}
    if method == "base" or found.summary(trained, measured[trained], method) is None:
        return None
    return [method_label(method), trained, *(_value(found, t, measured[t], name) for t, name in names.items())]


def _value(found: Collection, task: str, metric: str, method: str) -> str:
    own, base = (found.summary(task, metric, name) for name in (method, "base"))
    if own is None:
        return MISSING
    if base is None or method == "base":
        return number(own.estimate.value)
    return f"{number(own.estimate.value)} ({signed(Estimate(own.estimate.value - base.estimate.value, None, None))})"


def _tags(found: Collection) -> Section:
    section = Section("tags", "GenEval by kind of prompt")
    methods = found.methods("geneval") if "geneval" in found.tasks else []
    numbers = {m: {tag: found.summary("geneval", f"geneval_official_{tag}", m) for tag in TAGS} for m in methods}
    if not any(s for row in numbers.values() for s in row.values()):
        section.blocks.append(Text("GenEval was not measured here.", missing=True))
        return section
    main = [m for m in pictures.SHOWN if m in numbers]
    dots = {tag: {method_label(m): s.values for m in main if (s := numbers[m][tag])} for tag in TAGS}
    told = "; ".join(f"{tag}: " + ", ".join(f"{m} {np.mean(v):.2f}" for m, v in row.items()) for tag, row in dots.items())
    section.blocks.append(
        Drawing(
            "Share of right images (official rule) by tag, a dot per seed, a bar at their mean.",
            dots_svg(dots, "share of right images", f"GenEval by tag. {told}."),
        )
    )
    rows = [
        [method_label(m), *(estimate(s.estimate, 2) if s else MISSING for s in row.values())] for m, row in numbers.items()
    ]
    section.blocks.append(Table("GenEval, official rule, by tag: mean over seeds [95 %]", ["method", *TAGS], rows))
    return section


def _cost(found: Collection) -> Section:
    section = Section("cost", "What training cost")
    for task in found.tasks:
        rows = _cost_rows(found, task)
        if rows:
            head = [
                "method",
                "runs",
                "updates",
                "images",
                "minutes of a run",
                "seconds per 1,000 images",
                "of Flow-GRPO",
                "of dense_uniform",
            ]
            section.blocks.append(Table(f"{task}: wall-clock time of training", head, rows))
    if not section.blocks:
        section.blocks.append(Text("Nothing was trained here.", missing=True))
        return section
    section.blocks.append(
        Text(
            "Means over seeds, of runs made one after another: the machine's load is in them. “Of dense_uniform” is what the "
            "maps add to a loss per position; `star bench overhead` measures that in turn, in one process."
        )
    )
    return section


def _cost_rows(found: Collection, task: str) -> list[list[str]]:
    runs = {}
    for method in found.methods(task):
        of_method = {r.seed: r for r in found.rows if (r.task, r.method) == (task, method) and r.seconds and r.images_seen}
        if of_method:
            runs[method] = list(of_method.values())
    pace = {method: float(np.mean([1000 * r.seconds / r.images_seen for r in rows])) for method, rows in runs.items()}
    return [
        [
            method_label(method),
            str(len(rows)),
            f"{min(r.updates for r in rows):,}",
            f"{min(r.images_seen for r in rows):,}",
            number(float(np.mean([r.seconds for r in rows])) / 60, 1),
            number(pace[method], 1),
            *(f"× {pace[method] / pace[other]:.2f}" if other in pace else MISSING for other in (REFERENCE, "dense_uniform")),
        ]
        for method, rows in runs.items()
    ]
