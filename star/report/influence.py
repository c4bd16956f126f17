"""What the noise of one token does to image and reward: the figures of ``star bench influence``."""

import pandas as pd

from star.common.numbers import MISSING, with_error
from star.records.influence import LABELS
from star.report.blocks import Block, Section, Table, Text
from star.report.collection import Collection

MEANING = (
    "The noise of one token at one trained step of a rollout is drawn anew and all other noise stays. Objects: the share "
    "of prompts some of whose tokens lie where the verdict comes from, and of these prompts the share of such tokens, "
    "their share of the squared changes of the reward, and, within prompts, how much larger their squared change is than "
    "that of others. Relevance: the squared change by quarter of STAR's map, relative to the mean of all tokens. Image: "
    "how much of its squared change lies in the token itself and in the 3 x 3 around it. A map of objects can gain only "
    "where on over off is above 1, and STAR only where the quarters rise. ± is the jackknife standard error over prompts."
)


def influences(found: Collection) -> Section:
    """The chapter."""
    section = Section("influence", "What the noise of one token does")
    if found.influence is None:
        section.blocks.append(Text("Not measured here; `star bench influence` measures it.", missing=True))
        return section
    section.blocks.append(Text(MEANING))
    section.blocks += [_table(part) for _, part in found.influence.groupby(["task", "weights", "config_hash"], sort=False)]
    return section


def _table(part: pd.DataFrame) -> Block:
    """One task at one set of weights: a row per metric; a column for all steps together, then one for each."""
    figures = zip(part["metric"], part["part"], part["value"], part["stderr"], strict=True)
    cells = {(metric, step): with_error(value, stderr, 2) for metric, step, value, stderr in figures}
    steps = list(dict.fromkeys(part["part"]))
    rows = [[label, *(cells.get((name, step), MISSING) for step in steps)] for name, label in LABELS.items()]
    first = part.iloc[0]
    drawn = f"{first['prompts']} prompts, {first['images']:,} images, commit {', '.join(dict.fromkeys(part['commit']))}"
    return Table(f"{first['task']}, weights: {first['weights']}, {drawn}", ["figure", *steps], rows)
