"""Where the uncertainty of scores comes from, and what may be said of all tasks together."""

from collections.abc import Sequence

import pandas as pd

from star.common.numbers import MISSING, estimate, number
from star.common.statistics import ENOUGH_RUNS, ENOUGH_SCORES, enough, interquartile_mean, probability_of_improvement
from star.method.arms import METHODS, REFERENCE
from star.records.comparison import variances
from star.records.names import method_label
from star.report.blocks import Block, Section, Table, Text
from star.report.collection import Collection


def uncertainty(found: Collection) -> Section:
    """The chapter: the variance by source, and aggregates over tasks if there are enough runs."""
    section = Section("uncertainty", "Where the uncertainty comes from")
    if found.images is None:
        section.blocks.append(Text("Without per-image verdicts, the sources of variance cannot be separated.", missing=True))
    else:
        section.blocks.append(
            Text(
                "Standard deviation of one run's score, by source: how much it would vary if the model were trained again, "
                "if other prompts of the same kinds were used, or if the images were drawn from other noise. “Interaction” "
                "is what another training changes prompt by prompt; it averages out over prompts. Estimates below 0 are "
                "shown as 0."
            )
        )
        for task in found.tasks:
            column, label = found.main_score(task)
            if rows := _variance_rows(found.images_of(task), column, found.methods(task)):
                head = ["method", "training seed", "prompts", "evaluation noise", "interaction"]
                section.blocks.append(Table(f"{task}, {label}: standard deviation by source", head, rows))
    section.parts.append(Section("uncertainty-aggregate", "Across tasks", _aggregate(found)))
    return section


def _variance_rows(images: pd.DataFrame, column: str, methods: Sequence[str]) -> list[list[str]]:
    rows = []
    for method in methods:
        parts = variances(images, method, column)
        if parts:
            values = (parts.seed, parts.prompt, parts.noise, parts.interaction)
            deviations = ["not known" if v is None else number(max(v, 0.0) ** 0.5, 4) for v in values]
            rows.append([method_label(method), *deviations])
    return rows


def _aggregate(found: Collection) -> list[Block]:
    """For each arm, the interquartile mean over runs x tasks and its chance to beat Flow-GRPO and star_shuffled."""
    normalised, left_out = _normalised(found)
    blocks: list[Block] = [Text(f"{task} is left out: {why}.", missing=True) for task, why in left_out.items()]
    arms = [m for m in METHODS[1:] if normalised and all(m in runs for runs in normalised.values())]
    there = {arm: [runs[arm] for runs in normalised.values()] for arm in arms}
    scores = {arm: runs for arm, runs in there.items() if enough(runs)}
    if not scores:
        counts = ", ".join(f"{method_label(arm)} {sum(map(len, runs))}" for arm, runs in there.items()) or "none"
        blocks.append(
            Text(
                f"No aggregate over tasks: a bootstrap over runs needs at least {ENOUGH_RUNS} runs of each task and "
                f"{ENOUGH_SCORES} in all for each arm; found: {counts}.",
                missing=True,
            )
        )
        return blocks
    size = f"{min(sum(map(len, runs)) for runs in scores.values())} runs of {len(normalised)} tasks"
    rows = []
    for arm, runs in scores.items():
        others = (None if arm == other else scores.get(other) for other in (REFERENCE, "star_shuffled"))
        wins = [MISSING if o is None else estimate(probability_of_improvement(runs, o), 2) for o in others]
        # Flow-GRPO's own mean is the unit, whichever runs are drawn.
        mean = interquartile_mean(runs, None if arm == REFERENCE else there[REFERENCE])
        rows.append([method_label(arm), number(mean.value, 2) if arm == REFERENCE else estimate(mean, 2), *wins])
    caption = (
        f"Over {size}, scores scaled to 0 for the base and 1 for Flow-GRPO's mean: interquartile mean, and the chance that a "
        "run beats one of another arm; stratified bootstrap over the runs of both, nominally 95 %; with five runs per task it "
        "covers about 90 %, less where nearly all pairs are won; the base is treated as exact"
    )
    head = ["method", "interquartile mean [95 %]", "chance against Flow-GRPO [95 %]", "chance against star_shuffled [95 %]"]
    return [*blocks, Table(caption, head, rows)]


def _normalised(found: Collection) -> tuple[dict[str, dict[str, tuple[float, ...]]], dict[str, str]]:
    """Task -> method -> runs' main scores, 0 for the base and 1 for Flow-GRPO's mean; and why a task has none."""
    scores: dict[str, dict[str, tuple[float, ...]]] = {}
    left_out = {}
    for task in found.tasks:
        if task in found.checks:
            left_out[task] = "it checks measurements and is not a benchmark"
            continue
        metric = found.main_metric(task) or ""
        goal = found.summary(task, metric, REFERENCE)
        protocol = goal.protocol if goal else None
        own = {m: s for m in found.methods(task) if (s := found.summary(task, metric, m, protocol))}
        base = own.get("base")
        if base is None or goal is None:
            left_out[task] = "base or Flow-GRPO was not run"
            continue
        start, unit = base.estimate.value, goal.estimate.value - base.estimate.value
        if goal.estimate.interval is None or goal.estimate.interval[0] <= start:
            left_out[task] = "Flow-GRPO is not clearly above the base, so its gain cannot be the unit"
            continue
        trained = [m for m in own if m != "base"]
        unlike = [m for m in trained if not found.trained_alike(task, m, REFERENCE, goal.protocol)]
        if REFERENCE in unlike:
            left_out[task] = "Flow-GRPO was trained or judged in several ways, so its gain cannot be the unit"
            continue
        left_out |= {f"{method_label(m)} on {task}": "it was not trained or judged as Flow-GRPO was" for m in unlike}
        scores[task] = {m: tuple((v - start) / unit for v in own[m].values) for m in trained if m not in unlike}
    return scores, left_out
