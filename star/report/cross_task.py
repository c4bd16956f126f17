"""What training for one task does to the others, and to the diversity of a prompt's images."""

from collections.abc import Mapping

from star.common.numbers import MISSING, estimate, number, signed
from star.records.names import family, method_label, on_task
from star.records.tables import DIVERSITY, metric_label
from star.report.blocks import Block, Gallery, Section, Table, Text
from star.report.collection import TASKS, Collection, base_of, families, titled
from star.report.figures import dots_svg


def elsewhere(found: Collection) -> Section:
    """The chapter."""
    section = Section("elsewhere", "On the other tasks, and diversity")
    section.blocks.append(
        Text(
            "A checkpoint may have lost elsewhere what it gained on its own task. Each row is one arm trained for one task. "
            "Other tasks are scored with fewer images per prompt, so different rows may be scored on different images; in "
            "parentheses is the difference from the base on the same prompts and noise, with its 95 % interval, which with "
            "one seed does not cover other trainings."
        )
    )
    tasks = dict.fromkeys(task for task in (*TASKS, *found.tasks) if task not in found.checks)
    measured = {task: found.main_metric(task) or "" for task in tasks if any(row.task == task for row in found.rows)}
    section.blocks += _across(found, measured)
    section.blocks += _diversity(found)
    return section


def _across(found: Collection, measured: Mapping[str, str]) -> list[Block]:
    """Every score of every checkpoint, as a figure per scored task and as a table."""
    trained = {t: [m for m in found.methods(t) if found.trained(t, m)] for t in measured}
    methods = dict.fromkeys(m for of in trained.values() for m in of)
    arms = [(m, t) for m in methods for t in measured if m in trained[t]]
    if len(measured) < 2 or not arms:
        return [Text("Only one task was scored, so there is no cross-task table.", missing=True)]
    bases = [
        [method_label(m), "nothing", MISSING, *(_value(found, task, metric, m) for task, metric in measured.items())]
        for m in dict.fromkeys(["base", *(base_of(found, t, family(m)) for m, t in arms)])
    ]
    rows = [
        [
            method_label(m),
            own,
            str(len(found.seeds(own, m))),
            *(_value(found, t, measured[t], on_task(m, own, t)) for t in measured),
        ]
        for m, own in arms
    ]
    blocks: list[Block] = [
        Gallery(
            "Each task's main score after training for it or for another: a dot per seed, a bar at their mean.",
            [
                drawing
                for task, metric in measured.items()
                for variant in families(methods)
                if (drawing := _scores(found, task, metric, variant, [arm for arm in arms if family(arm[0]) == variant]))
            ],
        ),
        Table(
            "Main score of each task (columns) after training for each task (rows)",
            ["method", "trained for", "seeds", *measured],
            [*bases, *rows],
            numbers=2,
        ),
    ]
    if lacking := [task for task, metric in measured.items() if found.summary(task, metric, "base") is None]:
        text = f"The base was not measured on {', '.join(lacking)}, so the difference from it is not known there."
        blocks.append(Text(text, missing=True))
    return blocks


def _scores(found: Collection, task: str, metric: str, variant: str, arms: list[tuple[str, str]]) -> tuple[str, str] | None:
    """Title and drawing of one task's scores under all checkpoints of a family of methods."""
    dots: dict[str, dict[str, tuple[float, ...]]] = {}
    for method, trained in arms:
        if summary := found.summary(task, metric, on_task(method, trained, task)):
            dots.setdefault(method_label(method), {})[f"trained for {trained}"] = summary.values
    if not dots:
        return None
    label = metric_label(task, metric)
    told = "; ".join(f"{m} {name} {', '.join(map(number, v))}" for m, of in dots.items() for name, v in of.items())
    base = found.summary(task, metric, base_of(found, task, variant))
    line = ("base, all its images", base.estimate.value) if base else None
    title = f"{titled(task, variant)}, {label}"
    return title, dots_svg(dots, label, f"{title} after training for each task: {told}.", line)


def _value(found: Collection, task: str, metric: str, method: str) -> str:
    own = found.summary(task, metric, method)
    if own is None:
        return MISSING
    score, base = number(own.estimate.value), base_of(found, task, family(method))
    if method == base:
        return score
    gain = found.difference(task, method, base)
    return f"{score} ({signed(gain.delta)})" if gain else score


def _diversity(found: Collection) -> list[Block]:
    """Every seed's diversity as a figure per task, and one table of all."""
    runs = {task: {m: s for m in found.methods(task) if (s := found.summary(task, DIVERSITY, m))} for task in found.tasks}
    blocks: list[Block] = [
        Text(f"{task}: no diversity; it needs several images per prompt.", missing=True) for task, of in runs.items() if not of
    ]
    drawings, rows = [], []
    for task, of in runs.items():
        rows += [[method_label(m), task, estimate(s.estimate), ", ".join(map(number, s.values))] for m, s in of.items()]
        for variant in families(of):
            own = {m: s for m, s in of.items() if family(m) == variant and found.trained(task, m)}
            if not own:
                continue
            told = "; ".join(f"{method_label(m)} {estimate(s.estimate)}" for m, s in own.items())
            title, base = titled(task, variant), of.get(base_of(found, task, variant))
            alt = f"{title}: diversity of the images of a prompt, by method: {told}."
            dots = {method_label(m): {"seeds": s.values} for m, s in own.items()}
            line = ("base", base.estimate.value) if base else None
            drawings.append((title, dots_svg(dots, "mean distance of two images of a prompt", alt, line)))
    if drawings:
        blocks.append(Gallery("Diversity of a prompt's images, a dot per seed, a bar at their mean.", drawings))
    if rows:
        head = ["method", "trained for and drawn from", "mean [95 %]", "every seed"]
        blocks.append(Table("Diversity of a prompt's images", head, rows, numbers=2))
    return blocks
