"""The tests that were planned before the trainings (``results/PLAN.md``): two measures, paired by seed."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from star.common.statistics import Estimate, detectable_among, holm, mean_interval
from star.method.arms import REFERENCE
from star.records.names import method_label
from star.report.blocks import MISSING, Block, Section, Table, Text, number, signed
from star.report.collection import Collection
from star.tasks import primary

LEARNING, SCORE = "training reward", "held-out score"
PAIRS = (
    ("star", REFERENCE, "the question"),
    ("oracle_twins", REFERENCE, "a map that knows where things are ought to gain"),
    ("star", "star_shuffled", "is it the map's match to the prompt?"),
    ("background", REFERENCE, "a wrong map ought to lose"),
    ("dense_uniform", REFERENCE, "noise of training: equal gradients at ratio 1"),
)
QUESTION = ("star", REFERENCE)
MEANING = (
    "Two measures, planned before the trainings (`results/PLAN.md`): the training reward, mean over all epochs, and the score "
    "of the final weights on held-out prompts. Both are differences of two arms with the same seed, so with the same prompts "
    "and noise; intervals are Student's t over seeds, 95 %. Detectable: the true difference that so many seeds, spread as "
    "these are, find in four of five cases. p of the question is corrected for all its tests by Holm's procedure."
)


@dataclass(frozen=True)
class Planned:
    """One arm minus another on one measure of a task.

    Attributes:
        task, arm, reference, measure: which.
        seeds: that both have.
        per_seed: the difference of each.
    """

    task: str
    arm: str
    reference: str
    measure: str
    seeds: tuple[int, ...]
    per_seed: tuple[float, ...]

    @property
    def delta(self) -> Estimate:
        """Mean over seeds with Student's t-interval."""
        return mean_interval(self.per_seed)

    @property
    def detectable(self) -> float | None:
        """The difference found in four of five cases; None with one seed."""
        return detectable_among(self.per_seed)

    @property
    def p(self) -> float | None:
        """Of the two-sided t-test; None where it cannot be made."""
        if len(self.seeds) < 2 or np.ptp(self.per_seed) == 0:
            return None
        return float(stats.ttest_1samp(self.per_seed, 0.0).pvalue)


def planned(found: Collection) -> list[Planned]:
    """All planned differences that can be made of what is there."""
    made = []
    for task in found.tasks:
        for measure, values in ((LEARNING, _learning(found, task)), (SCORE, _scores(found, task))):
            for arm, reference, _ in PAIRS:
                ours, theirs = values.get(arm, {}), values.get(reference, {})
                if seeds := tuple(sorted(ours.keys() & theirs.keys())):
                    differences = tuple(ours[seed] - theirs[seed] for seed in seeds)
                    made.append(Planned(task, arm, reference, measure, seeds, differences))
    return made


def corrected(made: Sequence[Planned]) -> dict[tuple[str, str], float]:
    """(task, measure) -> p of the question, by Holm's procedure over all of its tests."""
    tests = [(one.task, one.measure, one.p) for one in made if (one.arm, one.reference) == QUESTION]
    known = [(task, measure, p) for task, measure, p in tests if p is not None]
    values = holm([p for *_, p in known])
    return {(task, measure): p for (task, measure, _), p in zip(known, values, strict=True)}


def planned_tests(found: Collection) -> Section:
    """The chapter: a table per task."""
    section = Section("planned", "The planned tests")
    made = planned(found)
    if not made:
        section.blocks.append(Text("None can be made: they need two arms with the same seed.", missing=True))
        return section
    section.blocks.append(Text(MEANING))
    p = corrected(made)
    section.blocks += [_table(task, [one for one in made if one.task == task], p) for task in found.tasks]
    return section


def _table(task: str, made: Sequence[Planned], p: dict[tuple[str, str], float]) -> Block:
    asks = {(arm, reference): what for arm, reference, what in PAIRS}
    rows = []
    for one in made:
        tested = p.get((task, one.measure)) if (one.arm, one.reference) == QUESTION else None
        rows.append(
            [
                f"{method_label(one.arm)} minus {method_label(one.reference)}",
                asks[one.arm, one.reference],
                one.measure,
                str(len(one.seeds)),
                signed(one.delta, 4),
                number(one.detectable, 4),
                MISSING if tested is None else number(tested),
            ]
        )
    head = ["difference", "what for", "measure", "seeds", "mean [95 %]", "detectable", "p"]
    return Table(f"{task}: planned differences", head, rows, numbers=3)


def _learning(found: Collection, task: str) -> dict[str, dict[int, float]]:
    """Method -> seed -> mean reward over all epochs."""
    if found.curves is None:
        return {}
    own = found.curves[found.curves["task"] == task]
    means = own.groupby(["method", "seed"])["reward"].mean()
    return _nested(means.items())


def _scores(found: Collection, task: str) -> dict[str, dict[int, float]]:
    """Method -> seed -> the task's main score."""
    main = primary(task)
    rows = [row for row in found.rows if row.task == task and row.metric == main and row.updates]
    return _nested(((row.method, row.seed), row.value) for row in rows)


def _nested(values: Iterable[tuple[Any, float]]) -> dict[str, dict[int, float]]:
    nested: dict[str, dict[int, float]] = {}
    for (method, seed), value in values:
        nested.setdefault(method, {})[int(seed)] = float(value)
    return nested
