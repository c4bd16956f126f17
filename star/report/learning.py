"""How the reward grew during training, and how fast."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from star.common.numbers import estimate, number
from star.common.statistics import mean_interval
from star.method.arms import ARMS, REFERENCE
from star.records.learning_curves import WINDOW, Reach, area_under_curve, cost_to_reach, levels, running_mean
from star.records.names import MethodName, family, method_label, reading_order
from star.report.blocks import Block, Gallery, Section, Table, Text
from star.report.collection import Collection, families, titled
from star.report.figures import INK, Curve, curves_svg

COSTS = {"updates": "updates", "images_seen": "images", "seconds": "seconds"}

Runs = Mapping[str, Mapping[int, pd.DataFrame]]
"""Method -> seed -> a line per epoch."""


def learning(found: Collection) -> Section:
    """The chapter: a drawing per arm with every seed, the area under the curve, and the cost of given rewards."""
    section = Section("learning", "How the reward grew")
    if found.curves is None:
        section.blocks.append(Text("There are no training curves here.", missing=True))
        return section
    for task in found.tasks:
        own = by_seed(found.curves, task)
        if own:
            section.parts.append(Section(f"learning-{task}", task, _learning_blocks(task, own)))
    return section


def by_seed(curves: pd.DataFrame, task: str) -> dict[str, dict[int, pd.DataFrame]]:
    """Method -> seed -> its lines in order of epochs."""
    own = curves[curves["task"] == task]
    by_method = {method: own[own["method"] == method].sort_values("epoch") for method in reading_order(own["method"])}
    return {
        method: {seed: part[part["seed"] == seed] for seed in sorted(set(part["seed"].tolist()))}
        for method, part in by_method.items()
    }


def _learning_blocks(task: str, own: Runs) -> list[Block]:
    lines = {method: {seed: curve(part, "images_seen") for seed, part in runs.items()} for method, runs in own.items()}
    rewards = np.concatenate([_shown(curve) for runs in lines.values() for curve in runs.values()])
    margin = 0.05 * (np.ptp(rewards) or 1.0)
    limits = (float(rewards.min() - margin), float(rewards.max() + margin))
    gallery = []
    for method, runs in lines.items():
        baseline = REFERENCE + family(method)
        reference = lines.get(baseline, {}) if method != baseline else {}
        ends = ", ".join(f"seed {seed} from {_shown(c)[0]:.3f} to {_shown(c)[-1]:.3f}" for seed, c in runs.items())
        alt = f"{task}: training reward of {method_label(method)} over images seen: {ends}."
        gallery.append((method_label(method), curves_svg(runs, reference, arm_color(method), limits, alt)))
    caption = (
        f"Running mean over {WINDOW} epochs of the training reward, a line per seed with its number at the end; dashed: "
        "Flow-GRPO's seeds."
    )
    blocks: list[Block] = [Gallery(caption, gallery)]
    for variant in families(own):
        title = titled(task, variant)
        blocks += _speed(title, REFERENCE + variant, {m: runs for m, runs in own.items() if family(m) == variant})
    return blocks


def arm_color(method: str) -> str:
    """The colour of a method's arm in every figure; the text's colour for an arm that has none."""
    arm = MethodName.parse(method).arm
    return (ARMS[arm].colour if arm in ARMS else None) or INK


def curve(part: pd.DataFrame, cost: str) -> Curve:
    """The reward of one run, epoch by epoch, over one of :data:`COSTS`."""
    return part[cost].tolist(), part["reward"].tolist()


def _shown(curve: Curve) -> np.ndarray:
    mean = running_mean(curve[1])
    return mean if len(mean) else np.asarray(curve[1])


def _speed(title: str, reference: str, own: Runs) -> list[Block]:
    """Area under the curve, and the cost of reaching given shares of what Flow-GRPO gained, of one family of methods."""
    long = {method: [part for part in runs.values() if len(part) > 1] for method, runs in own.items()}
    curves = [part for parts in long.values() for part in parts]
    if not curves:
        return [Text("One epoch is not a curve, so speed cannot be judged.", missing=True)]
    # A short trial of one arm must not cut off the curves of all others.
    until = min(part["images_seen"].iloc[-1] for part in long.get(reference) or curves)
    rows = []
    for method, parts in long.items():
        there = [part for part in parts if part["images_seen"].iloc[0] < until <= part["images_seen"].iloc[-1]]
        areas = [area_under_curve(*curve(part, "images_seen"), until=until) for part in there]
        if areas:
            rows.append([method_label(method), estimate(mean_interval(areas)), ", ".join(number(area) for area in areas)])
    caption = (
        f"{title}: training reward averaged over the first {until:,} images (area under the curve), of runs at least that long"
    )
    blocks: list[Block] = [Table(caption, ["method", "mean [95 % t-interval over seeds]", "every seed"], rows)]
    if reference not in own:
        return [*blocks, Text("Flow-GRPO was not trained, so there is no goal to reach.", missing=True)]
    start = float(np.mean([part["reward"].iloc[0] for part in curves]))
    if max(len(part) for part in curves) < WINDOW:
        return [*blocks, Text(f"With fewer than {WINDOW} epochs, there is no running mean to reach a goal.", missing=True)]
    goal = float(np.mean([_shown(curve(part, "images_seen"))[-1] for part in own[reference].values()]))
    goals = levels(start, goal)
    if not goals:
        return [*blocks, Text("Flow-GRPO's reward did not grow, so there is no goal to reach.", missing=True)]
    lines = [_reach_line(method, runs, level) for level in goals for method, runs in own.items()]
    caption = (
        f"{title}: cost until the running mean of the reward had gone half and all of the way from the start ({start:.3f}) to "
        f"where Flow-GRPO ended ({goal:.3f}); median over seeds, with “never” counted as the latest; seconds depend on what "
        "else the machine did"
    )
    return [*blocks, Table(caption, ["method", "reward", *COSTS.values(), "seeds that got there"], lines)]


def _reach_line(method: str, runs: Mapping[int, pd.DataFrame], level: float) -> list[str]:
    reaches = {cost: Reach(tuple(cost_to_reach(*curve(part, cost), level) for part in runs.values())) for cost in COSTS}
    medians = ["never" if reach.median is None else number(reach.median, 0) for reach in reaches.values()]
    return [method_label(method), number(level), *medians, f"{reaches['images_seen'].reached} of {len(runs)}"]
