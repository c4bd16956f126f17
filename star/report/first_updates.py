"""What the first updates of trainings gain: the rewards of ``star bench first_updates``, as gains over the untrained model."""

import pandas as pd

from star.common.numbers import MISSING, number, signed, with_error
from star.records.first_updates import Gain, gains
from star.report.blocks import Block, Gallery, Section, Table, Text
from star.report.collection import Collection
from star.report.figures import forest_svg

COLUMNS = ["arm", "seeds", "epochs", "gain [95 %]", "minus Flow-GRPO [95 %]", "detectable", "p", "gain over Flow-GRPO's"]
MEANING = (
    "Short trainings from the same weights, on the same prompts and noise: the mean reward of the epochs after the first, "
    "minus that of the untrained model. Arms still draw nearly the same images, so their differences are far less noisy than "
    "those of whole trainings, but like gradients they say little about where trainings end. Each arm is compared with "
    "Flow-GRPO on the seeds and epochs that both have. Intervals are 95 % Student's t over seeds; p is of a single test, "
    "uncorrected; ± is the jackknife standard error over seeds. The background should lose."
)


def first_updates(found: Collection) -> Section:
    """The chapter."""
    section = Section("first_updates", "What the first updates of a training gain")
    if found.first_updates is None:
        section.blocks.append(Text("Not measured here; `star bench first_updates` measures it.", missing=True))
        return section
    section.blocks.append(Text(MEANING))
    drawn = [drawing for part in parts(found.first_updates) if (drawing := _drawn(part))]
    if drawn:
        caption = "Gain over the untrained model, minus Flow-GRPO's, with 95 % intervals over seeds; ticks are single seeds."
        section.blocks.append(Gallery(caption, drawn))
    section.blocks += [_table(part) for part in parts(found.first_updates)]
    return section


def _drawn(part: pd.DataFrame) -> tuple[str, str] | None:
    """Title and drawing of the differences of one task and configuration; None if there are none."""
    rows = [(one.arm, one.difference, one.per_seed) for one in gains(part) if one.difference]
    if not rows:
        return None
    task = str(part["task"].iloc[0])
    told = "; ".join(f"{arm} {signed(difference, 4)}" for arm, difference, _ in rows)
    alt = f"{task}: gain in the first updates minus Flow-GRPO's, with 95 % intervals: {told}."
    return task, forest_svg(rows, "difference in gain", alt)


def parts(table: pd.DataFrame) -> list[pd.DataFrame]:
    """The rows of each task and configuration."""
    return [part for _, part in table.groupby(["task", "config_hash"], sort=False)]


def _table(part: pd.DataFrame) -> Block:
    """One task and configuration."""
    first = part.iloc[0]
    commits = ", ".join(dict.fromkeys(part["commit"]))
    of = f"{first['task']}: learning rate {first['lr']:g}, {part['updates'].max()} updates at most, commit {commits}"
    return Table(of, COLUMNS, [_row(one) for one in gains(part)])


def _row(one: Gain) -> list[str]:
    measured = [one.arm, str(one.seeds), str(one.epochs), signed(one.gain, 4)]
    if one.difference is None:
        return [*measured, *[MISSING] * 4]
    p = "< 0.0001" if one.p is not None and one.p < 0.0001 else number(one.p, 4)
    compared = [signed(one.difference, 4), number(one.detectable, 4), p, with_error(one.ratio, one.stderr, 2)]
    return [*measured, *compared]
