"""The report in one picture: how much reward maps gain, in multiples of Flow-GRPO's gain, from one step to whole trainings."""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from star.common.numbers import estimate
from star.common.statistics import Estimate, mean_interval, normal_interval
from star.method.arms import REFERENCE
from star.records.first_updates import SECOND, gains, last_third
from star.report.blocks import Block, Gallery
from star.report.collection import Collection, base_of
from star.report.figures import Panel, multiples_png, multiples_svg
from star.report.first_updates import parts
from star.report.gradient import at_first
from star.report.planned import ASKED_ON

ARMS = {
    "star": "star",
    "spatial": "spatial:\nmaps without time",
    "temporal": "temporal:\nmaps without space",
    "star_shuffled": "star_shuffled:\nother prompts' maps",
    "star_shifted": "star_shifted:\nmaps moved aside",
    "oracle_twins": "oracle_twins:\nwhere things are",
    "background": "background:\nall but the things",
}
"""The arms of the picture, with the labels of their rows."""

STAGES = STEP, FIRST, LAST, WHOLE = "a small step, predicted", "the first updates", "long after them", "whole trainings"
CAPTION = (
    "Reward gained, in multiples of Flow-GRPO's gain (the line), with 95 % intervals. A small step: what gradients predict, "
    "over epochs. All else was trained, and is over seeds, with Flow-GRPO's gain taken as known: the first updates, at a low "
    "rate; long after them: the last third of trainings at that rate, where they were made; whole trainings: the score on "
    "held-out prompts. If it matters where, spatial lies right of the line; if when, temporal does, or star lies right of "
    "spatial. A map that knows where things are (oracle_twins) should lie to the right, maps that do not fit the image "
    "(star_shuffled, star_shifted) on the line or left of it, and one of all but the things (background) to the left."
)


class Point(NamedTuple):
    """What an arm gains on a task at a stage of training, in multiples of Flow-GRPO's gain."""

    task: str
    arm: str
    stage: str
    gain: Estimate


def glance(found: Collection) -> list[Block]:
    """The picture for the page; nothing where no gain was measured."""
    made = panels(found)
    drawn = [(task, multiples_svg(_labelled(panel), _stages(made), _alt(task, panel))) for task, panel in made.items()]
    return [Gallery(CAPTION, drawn)] if drawn else []


def write_picture(found: Collection, file: Path) -> None:
    """The same as a PNG file, for a README; none where no gain was measured."""
    if made := panels(found):
        file.parent.mkdir(exist_ok=True)
        multiples_png({task: _labelled(panel) for task, panel in made.items()}, _stages(made), file)


def _labelled(panel: Panel) -> Panel:
    return {ARMS[arm]: row for arm, row in panel.items()}


def _alt(task: str, panel: Panel) -> str:
    rows = [f"{arm}: {', '.join(f'{stage} {estimate(gain, 2)}' for stage, gain in row.items())}" for arm, row in panel.items()]
    return f"{task}, reward gained in multiples of Flow-GRPO's gain. {'; '.join(rows)}."


def _stages(made: Mapping[str, Panel]) -> list[str]:
    """The stages that were measured."""
    return [stage for stage in STAGES if any(stage in row for panel in made.values() for row in panel.values())]


def panels(found: Collection) -> dict[str, Panel]:
    """Task -> arm -> stage -> gain, of the tasks that the question was planned for.

    What was measured with several settings is left out: one of them would stand for all.
    """
    points = [*_gradients(found), *_updates(found), *_trainings(found)]
    times = Counter(point[:3] for point in points)
    known = {point[:3]: point.gain for point in points if times[point[:3]] == 1}
    made: dict[str, Panel] = {}
    for task in ASKED_ON:
        rows = {arm: {stage: known[task, arm, stage] for stage in STAGES if (task, arm, stage) in known} for arm in ARMS}
        if panel := {arm: row for arm, row in rows.items() if row}:
            made[task] = panel
    return made


def _gradients(found: Collection) -> Iterator[Point]:
    if found.gradient is None:
        return
    own = at_first(found.gradient, "ratio")
    for task, arm, value, stderr in zip(own["task"], own["arm"], own["value"], own["stderr"], strict=True):
        yield Point(str(task), str(arm), STEP, normal_interval(float(value), float(stderr)))


def _updates(found: Collection) -> Iterator[Point]:
    for table, stage in ((found.first_updates, FIRST), (found.lasting, LAST)):
        for part in [] if table is None else parts(table):
            since = SECOND if stage == FIRST else last_third(part)
            for one in gains(part, since):
                if one.difference:
                    whole = one.gain.value - one.difference.value
                    yield from _point(str(part["task"].iloc[0]), one.arm, stage, one.difference, whole)


def _trainings(found: Collection) -> Iterator[Point]:
    for task in ASKED_ON:
        trained = found.difference(task, REFERENCE, base_of(found, task, "")) if task in found.tasks else None
        if trained is None:
            continue
        for arm in ARMS:
            made = found.difference(task, arm, REFERENCE)
            if made and made.equal_terms:
                yield from _point(task, arm, WHOLE, mean_interval(made.per_seed), trained.delta.value)


def _point(task: str, arm: str, stage: str, difference: Estimate, gain: float) -> Iterator[Point]:
    """The point of a difference to Flow-GRPO; none if Flow-GRPO gained nothing."""
    if gain > 0:
        ends = difference.interval and (1 + difference.interval[0] / gain, 1 + difference.interval[1] / gain)
        yield Point(task, arm, stage, Estimate(1 + difference.value / gain, None, ends))
