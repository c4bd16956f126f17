"""What gradients say about the maps, without a training: the figures of ``star bench gradient``."""

import pandas as pd

from star.common.numbers import MISSING, with_error
from star.common.statistics import normal_interval
from star.method.arms import REFERENCE
from star.records.folder import INITIAL
from star.report.blocks import Block, Gallery, Section, Table, Text
from star.report.collection import Collection
from star.report.figures import forest_svg

COLUMNS = {
    "self_cosine": "self-cosine",
    "ratio": "ratio",
    "effective_images": "images",
    "adam_ratio": "ratio in Adam's metric",
}
MEANING = (
    "Gradients of different epochs at the same weights, from rollouts that share nothing. Self-cosine: how well an arm's "
    "gradients agree, about signal over signal plus noise. Ratio: the reward that a small step of fixed length along the "
    "arm's gradient gains, relative to Flow-GRPO's. Images: how many times as many Flow-GRPO would need to match the arm. The "
    "map of oracle_twins shows where the verdicts on the prompt's other rollouts come from: about what a map can do without "
    "knowing the noise it weights. The oracle's map is of the rollout's own verdict and knows that noise, so no training "
    "reaches its figure; the background should lose. ± is the jackknife standard error over epochs; rows with a minus are "
    "differences of two arms on the same rollouts."
)


def gradients(found: Collection) -> Section:
    """The chapter."""
    section = Section("gradients", "What gradients say about the maps, without training")
    if found.gradient is None:
        section.blocks.append(Text("Not measured here; `star bench gradient` measures it.", missing=True))
        return section
    section.blocks.append(Text(MEANING))
    measured = whole_gradients(found.gradient[found.gradient["metric"].isin(COLUMNS)])
    drawn = [drawing for part in measured if part["weights"].iloc[0] == INITIAL and (drawing := _drawn(part))]
    if drawn:
        caption = f"At the {INITIAL} weights, with 95 % intervals: above 0 a small step gains more than Flow-GRPO's."
        section.blocks.append(Gallery(caption, drawn))
    section.blocks += [_table(part) for part in measured]
    return section


def whole_gradients(table: pd.DataFrame) -> list[pd.DataFrame]:
    """The rows of gradient.csv on whole gradients, by task, weights and configuration."""
    whole = table[table["part"] == "all"]
    return [part for _, part in whole.groupby(["task", "weights", "config_hash"], sort=False)]


def at_first(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The rows of gradient.csv with a metric of the arms' whole gradients, at the initial weights."""
    return table[(table["part"] == "all") & (table["metric"] == metric) & (table["weights"] == INITIAL)]


def _drawn(part: pd.DataFrame) -> tuple[str, str] | None:
    """Title and drawing of the ratios of one task; None if there is none but Flow-GRPO's."""
    own = part[(part["metric"] == "ratio") & (part["arm"] != REFERENCE) & ~part["arm"].str.contains(" - ")]
    figures = zip(own["arm"], own["value"], own["stderr"], strict=True)
    rows = [(str(arm), normal_interval(value - 1, stderr)) for arm, value, stderr in figures]
    if not rows:
        return None
    task = str(part["task"].iloc[0])
    told = "; ".join(f"{arm} {with_error(1 + ratio.value, ratio.stderr)}" for arm, ratio in rows)
    drawn = [(arm, ratio, ()) for arm, ratio in rows]
    return task, forest_svg(drawn, "ratio - 1", f"{task}: reward of a small step relative to Flow-GRPO's: {told}.")


def _table(part: pd.DataFrame) -> Block:
    """One task at one set of weights; its arms may come from several commands, with different numbers of epochs."""
    figures = zip(part["arm"], part["metric"], part["value"], part["stderr"], strict=True)
    cells = {(arm, metric): with_error(value, stderr) for arm, metric, value, stderr in figures}
    first = part.iloc[0]
    measured = part.drop_duplicates("arm").set_index("arm")
    rows = [
        [str(arm), f"{of['epochs']}", f"{of['images']:,}", *(cells.get((arm, metric), MISSING) for metric in COLUMNS)]
        for arm, of in measured.iterrows()
    ]
    caption = f"{first['task']}, weights: {first['weights']}, commit {', '.join(dict.fromkeys(part['commit']))}"
    return Table(caption, ["arm", "epochs", "drawn", *COLUMNS.values()], rows)
