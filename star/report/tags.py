"""GenEval by kind of prompt."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pandas as pd

from evaluators.geneval.evaluator import GenEval
from evaluators.geneval.prompts import TAGS
from star.common.numbers import MISSING, number, signed
from star.common.statistics import Estimate
from star.method.arms import REFERENCE
from star.records.comparison import Comparison, compare
from star.records.names import method_label
from star.records.summary import Summary
from star.report.ablation import difference_row
from star.report.blocks import Block, Gallery, Section, Table, Text
from star.report.collection import Collection
from star.report.figures import dots_svg, forest_svg
from star.report.pictures import SHOWN

# With fewer prompts, many of them as often right under both arms, a bootstrap's 95 % interval can cover as little as 64 %.
ENOUGH_PROMPTS = 15


def tags(found: Collection) -> Section:
    """The chapter: every method and seed beside the published numbers, and STAR minus Flow-GRPO, tag by tag."""
    section = Section("tags", "GenEval by kind of prompt")
    methods = found.methods("geneval") if "geneval" in found.tasks else []
    summaries = {m: {t: s for t in TAGS if (s := found.summary("geneval", f"geneval_official_{t}", m))} for m in methods}
    summaries = {method: of for method, of in summaries.items() if of}
    if not summaries:
        section.blocks.append(Text("GenEval was not measured here.", missing=True))
        return section
    compared = by_tag(found.images)
    section.blocks.append(
        Gallery(
            "Share of correct images (official rule) by tag: a dot per seed, a bar at their mean; and the paired difference "
            f"with its 95 % interval, where there are {ENOUGH_PROMPTS} prompts or more.",
            [_dots(summaries), *_forest(compared)],
        )
    )
    section.blocks += [_table(found, summaries), *_differences(compared)]
    return section


def by_tag(images: pd.DataFrame | None) -> dict[str, Comparison]:
    """Tag -> STAR minus Flow-GRPO on its prompts, without an interval where there are too few."""
    if images is None:
        return {}
    own = images[images["task"] == "geneval"]
    column, label = next(iter(GenEval.paired.items()))
    made = {tag: compare(own[own["stratum"] == tag], "star", REFERENCE, column, label) for tag in TAGS}
    return {tag: _without_interval(c) if c.prompts < ENOUGH_PROMPTS else c for tag, c in made.items() if c}


def _without_interval(c: Comparison) -> Comparison:
    return replace(c, delta=Estimate(c.delta.value, None, None))


def _dots(summaries: Mapping[str, Mapping[str, Summary]]) -> tuple[str, str]:
    main = [method for method in SHOWN if method in summaries]
    dots = {tag: {method_label(m): summaries[m][tag].values for m in main if tag in summaries[m]} for tag in TAGS}
    told = "; ".join(f"{tag}: " + ", ".join(f"{m} {np.mean(v):.2f}" for m, v in row.items()) for tag, row in dots.items())
    return "Share of correct images", dots_svg(dots, "share of correct images", f"GenEval by tag. {told}.")


def _forest(compared: Mapping[str, Comparison]) -> list[tuple[str, str]]:
    if not compared:
        return []
    told = "; ".join(f"{tag} {signed(c.delta)}" for tag, c in compared.items())
    rows = [(tag, c.delta, c.per_seed) for tag, c in compared.items()]
    alt = f"GenEval by tag, STAR minus Flow-GRPO, 95 % intervals: {told}."
    return [("STAR minus Flow-GRPO", forest_svg(rows, "difference in the share of correct images", alt))]


def _table(found: Collection, summaries: Mapping[str, Mapping[str, Summary]]) -> Table:
    published = {row.key: row.value for row in found.paper}
    rows = []
    for method, of in summaries.items():
        rows.append([method_label(method), "this project", *(_seeds(of.get(tag)) for tag in TAGS)])
        answers = [published.get(("geneval", f"geneval_official_{tag}", method)) for tag in TAGS]
        if any(answer is not None for answer in answers):
            rows.append([method_label(method), "published", *(MISSING if value is None else str(value) for value in answers)])
    caption = "GenEval, official rule, by tag: mean, and every seed in parentheses if there are several"
    return Table(caption, ["method", "numbers", *TAGS], rows, numbers=2)


def _seeds(summary: Summary | None) -> str:
    # No t-interval over seeds: on a few dozen images, seeds often agree by chance, and it then has no width.
    if summary is None:
        return MISSING
    mean = number(summary.estimate.value, 2)
    return mean if summary.seeds == 1 else f"{mean} ({', '.join(number(value, 2) for value in summary.values)})"


def _differences(compared: Mapping[str, Comparison]) -> list[Block]:
    if not compared:
        return []
    head = ["tag", "STAR minus Flow-GRPO [95 %]", "every seed", "images of a seed"]
    rows = [[*difference_row(c, tag), f"{c.images:,} of {c.prompts:,} prompts"] for tag, c in compared.items()]
    return [Table("GenEval, official rule, by tag: paired differences", head, rows)]
