"""The tests that were planned before the trainings (``results/PLAN.md``): two measures, paired by seed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evaluators.pickscore.evaluator import REWARD_SCALE, Preference
from star.common.numbers import MISSING, counted, number, p_value, signed
from star.common.statistics import Estimate, detectable_among, holm, mean_interval, paired_p
from star.method.arms import REFERENCE
from star.records.comparison import Trained
from star.records.names import method_label, plainness
from star.report.blocks import Block, Section, Table, Text
from star.report.collection import TASKS, Collection
from star.report.verdict import FEW_OF_CONTROL, FEW_SEEDS, NO_CONTROL, SEEDS_FOR_A_CLAIM, says_of_oracle, verdict

LEARNING, SCORE = "training reward", "held-out score"
PAIRS = (
    ("star", REFERENCE, "the question"),
    ("oracle_twins", REFERENCE, "a map that knows where things are ought to gain"),
    ("star", "star_shuffled", "is it the map's match to the prompt?"),
    ("background", REFERENCE, "a wrong map ought to lose"),
    ("dense_uniform", REFERENCE, "noise of training: equal gradients at ratio 1"),
)
QUESTION = ("star", REFERENCE)
OF_CHECKS = [(arm, REFERENCE) for arm in ("star", "oracle_twins", "background")]
"""The differences that were planned on a task that checks measurements, in training reward alone."""
ASKED_ON = TASKS
"""The tasks that the question was planned for; on any other a difference is reported without a test."""
TESTS = 2 * len(ASKED_ON)
"""Tests of the question: two measures on each of its tasks. The correction also counts those that cannot be made yet."""
PLANNED = "Two measures, planned before the trainings (`results/PLAN.md`): "
NOT_PLANNED = (
    "Two measures, those that `results/PLAN.md` planned for the embedded model; they were not planned for these runs: "
)
MEANING = (
    "the training reward, mean over all epochs, and the score of the final weights on held-out prompts. Both are compared "
    "between two arms with the same seed, and so the same prompts and noise; intervals are 95 % Student's t over seeds. Seeds "
    "that were not trained alike, or not scored under one protocol and on as many images, are left out. Detectable: the true "
    "difference that this many seeds with this spread find with 80 % power in one test at 5 %. The question's p is corrected "
    "for its six tests, made or not, by Holm's procedure, so the first difference to be found has to be larger."
)


@dataclass(frozen=True)
class Planned:
    """One arm minus another on one measure of a task.

    Attributes:
        task, arm, reference, measure: what is compared.
        seeds: the seeds that both have.
        per_seed: the difference of each seed.
        unit: unit of the measure, where it is not the score's.
    """

    task: str
    arm: str
    reference: str
    measure: str
    seeds: tuple[int, ...]
    per_seed: tuple[float, ...]
    unit: str = ""

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What identifies a difference."""
        return self.task, self.measure, self.arm, self.reference

    @property
    def label(self) -> str:
        """The measure, with its unit."""
        return f"{self.measure} ({self.unit})" if self.unit else self.measure

    @property
    def delta(self) -> Estimate:
        """Mean over seeds with Student's t-interval."""
        return mean_interval(self.per_seed)

    @property
    def equal_terms(self) -> bool:
        """Always: seeds that were not trained alike are left out."""
        return True

    @property
    def detectable(self) -> float | None:
        """The true difference that is found in four of five cases; None where the spread of seeds is not known."""
        return detectable_among(self.per_seed)

    @property
    def p(self) -> float | None:
        """The p-value of the two-sided t-test; None where it cannot be made."""
        return paired_p(self.per_seed)


Measured = dict[str, dict[int, Trained]]
"""Method -> seed -> the training and its value."""


def planned(found: Collection) -> list[Planned]:
    """All planned differences that can be computed here, each between trainings that are alike."""
    made = []
    for task in found.tasks:
        rewards = f"PickScore / {REWARD_SCALE}" if found.main_metric(task) == Preference.primary else ""
        for measure, ways, unit in ((LEARNING, [_learning(found, task)], rewards), (SCORE, _scores(found, task), "")):
            for arm, reference, _ in PAIRS:
                # The protocol with the most seeds; of equal ones the plainer.
                differences = max((_differences(way, arm, reference) for way in ways), key=len, default={})
                if differences:
                    made.append(Planned(task, arm, reference, measure, tuple(differences), tuple(differences.values()), unit))
    return made


def _differences(values: Measured, arm: str, reference: str) -> dict[int, float]:
    """Seed -> arm minus reference."""
    ours, theirs = values.get(arm, {}), values.get(reference, {})
    alike = [seed for seed in sorted(ours.keys() & theirs.keys()) if ours[seed].like(theirs[seed])]
    # If seeds were trained in several ways, those of the most common one count.
    sets = [[other for other in alike if ours[seed].like(ours[other])] for seed in alike]
    return {seed: ours[seed].value - theirs[seed].value for seed in max(sets, key=len, default=[])}


def corrected(made: Sequence[Planned]) -> dict[tuple[str, str], float]:
    """(task, measure) -> p of the question, by Holm's procedure over all of its tests, made or not."""
    asked = [one for one in made if (one.arm, one.reference) == QUESTION and one.task in ASKED_ON]
    # Differences that are all the same have no test, which does not mean that they pass one.
    known = {(one.task, one.measure): 1.0 if one.p is None else one.p for one in asked if len(one.seeds) > 1}
    values = holm([*known.values(), *[1.0] * (TESTS - len(known))])
    return dict(zip(known, values, strict=False))


def planned_tests(found: Collection) -> Section:
    """The chapter: a table per task."""
    section = Section("planned", "The planned tests")
    made = planned(found)
    if not made:
        section.blocks.append(Text("None can be made: they need two arms trained alike with the same seed.", missing=True))
        return section
    section.blocks.append(Text((PLANNED if found.mini else NOT_PLANNED) + MEANING))
    p = corrected(made)
    for task in found.tasks:
        own = [one for one in made if one.task == task]
        if task in ASKED_ON:
            section.blocks.append(_table(task, own, p, [(arm, reference) for arm, reference, _ in PAIRS]))
        elif task in found.checks:  # users' own tasks were not planned
            own = [one for one in own if one.measure == LEARNING and (one.arm, one.reference) in OF_CHECKS]
            section.blocks.append(_table(task, own, p, OF_CHECKS))
    return section


def says_of_learning(task: str, made: Sequence[Planned], tests: Mapping[tuple[str, str], float]) -> Text | None:
    """The paragraph on the other planned measure of the question, the training reward; None where STAR has no difference.

    Args:
        task: name of the task.
        made: all planned differences.
        tests: their corrected p, see :func:`corrected`.
    """
    known = {(one.arm, one.reference): one for one in made if (one.task, one.measure) == (task, LEARNING)}
    gain, control, oracle = (known.get(pair) for pair in (QUESTION, ("star", "star_shuffled"), ("oracle_twins", REFERENCE)))
    if gain is None:
        return None
    p = tests.get((task, LEARNING))
    text = (
        f"Mean over all epochs, {counted(len(gain.seeds), 'training seed')}: STAR minus Flow-GRPO is {signed(gain.delta, 4)}"
    )
    text += "." if p is None else f"; the test over seeds, corrected for multiple testing, gives p = {p_value(p)}."
    if gain.detectable is not None:
        text += f" This many trainings detect {gain.detectable:.4f} with 80 % power in one test at 5 %."
    found = verdict(gain, control, p=p)
    text += f" {says_of_oracle(oracle, found, 4)}"
    if control:
        size = "" if control.seeds == gain.seeds else f" ({counted(len(control.seeds), 'training seed')})"
        text += f" STAR minus star_shuffled is {signed(control.delta, 4)}{size}."
    elif found == NO_CONTROL:
        text += " STAR minus star_shuffled, the control, is not known."
    if found == FEW_SEEDS and len(gain.seeds) >= SEEDS_FOR_A_CLAIM:
        text += f" {FEW_OF_CONTROL}"
    scored = next((one for one in made if one.key == (task, SCORE, *QUESTION)), None)
    if scored and _side(scored) * _side(gain) < 0:
        text += (
            f" The score on held-out prompts has the opposite sign, {signed(scored.delta, 4)}: neither tells the whole story."
        )
    return Text(text, strong=f"{task}, {gain.label}: {found}")


def _side(one: Planned) -> int:
    """The side of 0 on which the whole interval of a difference lies, 1 or -1; 0 if on neither."""
    low, high = one.delta.interval or (-1.0, 1.0)
    return (low > 0) - (high < 0)


def says_of_check(task: str, made: Sequence[Planned]) -> Text:
    """Whether trainings on a task that checks measurements can tell maps apart: a wrong map must be seen to lose."""
    known = {one.arm: one for one in made if (one.task, one.reference, one.measure) == (task, REFERENCE, LEARNING)}
    wrong = known.get("background")
    if wrong is None or wrong.delta.interval is None:
        text = "It needs at least two seeds of Flow-GRPO and of the background, a map that should lose."
        return Text(text, strong=f"{task}, a check: not made.", missing=True)
    told = [
        f"{method_label(arm)} minus Flow-GRPO {signed(one.delta, 4)} ({counted(len(one.seeds), 'seed')})"
        for arm, one in known.items()
    ]
    seen = "tell maps apart" if wrong.delta.interval[1] < 0 else "do not tell maps apart"
    return Text(
        f"Training reward, mean over all epochs: {'; '.join(told)}. The background is a map that should lose; maps are "
        "told apart if its interval lies below 0. No claim is made about this task.",
        strong=f"{task}, a check: {counted(len(wrong.seeds), 'training')} of each arm {seen}.",
    )


def _table(task: str, made: Sequence[Planned], p: Mapping[tuple[str, str], float], pairs: Sequence[tuple[str, str]]) -> Block:
    asks = {(arm, reference): what for arm, reference, what in PAIRS if (arm, reference) in pairs}
    there = {(one.arm, one.reference) for one in made}
    rows = []
    for one in made:
        tested = p.get((task, one.measure)) if (one.arm, one.reference) == QUESTION else None
        rows.append(
            [
                f"{method_label(one.arm)} minus {method_label(one.reference)}",
                asks[one.arm, one.reference],
                one.label,
                str(len(one.seeds)),
                signed(one.delta, 4),
                number(one.detectable, 4),
                MISSING if tested is None else p_value(tested),
            ]
        )
    rows += [
        [f"{method_label(arm)} minus {method_label(reference)}", what, "not run", *[MISSING] * 4]
        for (arm, reference), what in asks.items()
        if (arm, reference) not in there
    ]
    head = ["difference", "what for", "measure", "seeds", "mean [95 %]", "detectable", "p"]
    return Table(f"{task}: planned differences", head, rows, numbers=3)


def _learning(found: Collection, task: str) -> Measured:
    """The mean reward of each training over all its epochs."""
    values: Measured = {}
    if found.curves is not None:
        grouped: Any = found.curves[found.curves["task"] == task].groupby(["method", "seed", "config_hash"])["reward"]
        for (method, seed, settings), rewards in grouped:
            terms = found.terms.get((task, method, seed, settings), "")
            values.setdefault(method, {})[int(seed)] = Trained(method, float(rewards.mean()), len(rewards), terms)
    return values


def _scores(found: Collection, task: str) -> list[Measured]:
    """The task's main score, by protocol, plain ones first."""
    main = found.main_metric(task)
    by_protocol: dict[str, Measured] = {}
    for row in found.rows:
        if row.task == task and row.metric == main and row.updates:
            values = by_protocol.setdefault(row.protocol, {}).setdefault(row.method, {})
            values[row.seed] = found.trained_as(row)
    return [by_protocol[name] for name in sorted(by_protocol, key=plainness)]
