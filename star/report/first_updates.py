"""What the first updates of trainings gain: the rewards of ``star bench first_updates``, as gains over the untrained model."""

import pandas as pd

from star.common.numbers import MISSING, number, p_value, signed, with_error
from star.records.first_updates import SECOND, Gain, against_each, gains, last_third, leads
from star.records.learning_curves import WINDOW
from star.report.blocks import Block, Gallery, Section, Table, Text
from star.report.collection import Collection
from star.report.figures import forest_svg, leads_svg
from star.report.learning import arm_color

COLUMNS = ["arm", "seeds", "epochs", "gain [95 %]", "minus Flow-GRPO [95 %]", "detectable", "p", "gain over Flow-GRPO's"]
BESIDE = ["STAR minus", "seeds", "epochs", "difference [95 %]", "detectable", "p"]
MEANING = (
    "Short trainings from the same weights, on the same prompts and noise: the mean reward of the epochs after the first, "
    "minus that of the untrained model. Arms still draw nearly the same images, so their differences are far less noisy than "
    "those of whole trainings, but like gradients they say little about where trainings end. Each arm is compared with "
    "Flow-GRPO on the seeds and epochs that both have. Intervals are 95 % Student's t over seeds; p is of a single test, "
    "uncorrected; ± is the jackknife standard error over seeds. The background should lose."
)
LASTING = (
    "Longer trainings of the same kind: what is left of a lead? Figures are those of the first updates, of all epochs after "
    "the first, and then of the last third. The longer arms train, the less alike are the images that they draw, and the more "
    "a difference may be chance."
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
    section.blocks += [block for part in parts(found.first_updates) for block in (_table(part), *_star_beside(part))]
    if found.lasting is not None:
        section.parts.append(_lasting(found.lasting))
    return section


def _lasting(table: pd.DataFrame) -> Section:
    """What came of the leads in longer trainings: a curve of each arm, and its figures at first and at last."""
    drawn: list[tuple[str, str]] = []
    tables: list[Block] = []
    for part in parts(table):
        task, last, apart = str(part["task"].iloc[0]), int(part["epoch"].max()), leads(part)
        lines = {str(arm): (apart.index.tolist(), apart[arm].tolist()) for arm in apart}
        if lines:
            told = "; ".join(f"{arm} {signed(lead[-1], 4)}" for arm, (_, lead) in lines.items())
            alt = f"{task}: reward minus Flow-GRPO's over epochs, mean over seeds; in epoch {last}: {told}."
            drawn.append((task, leads_svg(lines, [arm_color(arm) for arm in lines], alt)))
        tables += [_table(part, since) for since in (SECOND, last_third(part))]
    caption = f"Reward minus Flow-GRPO's on the same prompts, mean over seeds, running mean over {WINDOW} epochs."
    return Section("lasting", "What is left of the leads", [Text(LASTING), *[Gallery(caption, drawn)] * bool(drawn), *tables])


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


def _table(part: pd.DataFrame, since: int = SECOND) -> Block:
    """One task and configuration."""
    first = part.iloc[0]
    commits = ", ".join(dict.fromkeys(part["commit"]))
    of = f"{first['task']}: learning rate {first['lr']:g}, {part['updates'].max()} updates at most, commit {commits}"
    return Table(of, COLUMNS, [_row(one, since) for one in gains(part, since)])


def _star_beside(part: pd.DataFrame) -> list[Block]:
    """STAR minus its ablations and controls; nothing if it was not trained with any."""
    beside = against_each(part, "star")
    rows = [[other, str(one.seeds), f"{SECOND} to {one.epochs}", *_difference(one)] for other, one in beside.items()]
    return [Table(f"{part['task'].iloc[0]}: STAR's gain minus that of other arms", BESIDE, rows)] if rows else []


def _row(one: Gain, since: int) -> list[str]:
    ratio = with_error(one.ratio, one.stderr, 2) if one.difference else MISSING
    return [one.arm, str(one.seeds), f"{since} to {one.epochs}", signed(one.gain, 4), *_difference(one), ratio]


def _difference(one: Gain) -> list[str]:
    """The difference, what would have been detected, and p."""
    if one.difference is None:
        return [MISSING] * 3
    return [signed(one.difference, 4), number(one.detectable, 4), MISSING if one.p is None else p_value(one.p)]
