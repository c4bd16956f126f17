"""A task on one screen: one's own numbers beside the shipped and the published ones, and what the difference is worth."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from star.common.console import console_for_tables, print_table
from star.common.errors import UserError
from star.common.numbers import MISSING, counted, estimate, named_seeds, signed, with_error
from star.common.statistics import all_same, detectable
from star.method.arms import REFERENCE
from star.records import diff
from star.records.beside import Agreement, Beside, agreement, lines
from star.records.comparison import Comparison
from star.records.folder import latest_own_results, shipped_results
from star.records.names import is_mini, measured_on_own_task, method_label
from star.records.summary import Summary
from star.records.tables import metric_label
from star.report.blocks import Table, Text
from star.report.collection import Collection, collect, families

HEAD = ("method", "score", "yours", "shipped", "paper (SD3.5 Medium)")
SEEDS_TO_NAME = 8


def overview(as_json: bool = False) -> int:
    """Print the :func:`ending` of every task of the results that were made here last; returns the exit code of their diffs.

    Args:
        as_json: print the diffs' rows as JSON instead.

    Raises:
        UserError: there are none, or a file does not follow its schema.
    """
    folder = latest_own_results()
    found = collect(folder, Path("runs"))
    if not found.tasks:
        raise UserError(
            f"{folder} has no task of its own runs, only rows of models that were trained for another: nothing to diff"
        )
    rows = [row for task in found.tasks for row in diff.diff(folder / f"{task}.csv")]
    if as_json:
        print(diff.to_json(rows))
        return diff.exit_code(rows)
    for task in found.tasks:
        variant = families(found.methods(task))[0]
        show(ending(found, task, f"star{variant}", f"{REFERENCE}{variant}"))
    return diff.exit_code(rows)


def ending(found: Collection, task: str, arm: str = "star", reference: str = REFERENCE) -> list[Table | Text]:
    """A task's scores beside the shipped and the published ones: a table and a few sentences.

    Args:
        found: one's own results.
        task: one of its tasks.
        arm, reference: the methods that are compared, by their names in the results.

    Raises:
        UserError: a shipped file does not follow its schema.
    """
    theirs = found.shipped
    beside = lines(task, found.rows, theirs.rows if theirs else [], found.paper)
    several = len({line.own.protocol for line in beside}) > 1
    small = any(is_mini(line.own.protocol) for line in beside)
    rows = [_line(line, several) for line in beside]
    if not small:  # the diff has a row for each of these, in the same order, then those that were not run
        statuses = [row.status for row in diff.against_paper([line.own for line in beside], found.paper)]
        rows = [[*row, status] for row, status in zip(rows, statuses, strict=False)]
    own = found.difference(task, arm, reference)
    known = theirs.difference(task, arm, reference) if theirs else None
    sentences = [
        f"{method_label(arm)} minus {method_label(reference)}, yours: {_difference(own)}; shipped: {_difference(known)}.",
        _budgets(own, known),
        _detectable(own, known),
        _agreement(agreement(task, found.folder, shipped_results(found.scale))),
    ]
    if small:
        sentences.append("The small model's numbers compare methods with each other, and are not comparable with the paper's.")
    return [
        Table(f"{task}, {found.scale}", HEAD if small else (*HEAD, "verdict"), rows, numbers=2),
        *(Text(sentence) for sentence in sentences if sentence),
    ]


def show(blocks: Sequence[Table | Text]) -> None:
    """Print tables and sentences."""
    screen = console_for_tables()
    for block in blocks:
        if isinstance(block, Text):
            screen.print(block.text, soft_wrap=True)
            continue
        print_table(block.caption, block.head, block.rows)


def _line(line: Beside, several: bool) -> list[str]:
    published = str(line.paper.value) if line.paper and line.paper.value is not None else MISSING
    own = line.own
    score = metric_label(own.task, own.metric) + (f", {own.protocol}" if several else "")
    return [method_label(own.method), score, _told(own), _told(line.shipped), published]


def _told(summary: Summary | None) -> str:
    if summary is None:
        return MISSING
    shown = summary.shown
    if summary.seeds == 1:
        return with_error(shown.value, shown.stderr, 4)
    return estimate(shown, 4) + (f", {summary.seeds} seeds" if shown.interval else "")


def _difference(gain: Comparison | None) -> str:
    if gain is None:
        return "none that can be compared"
    seeds = counted(len(gain.seeds), "seed") if len(gain.seeds) > SEEDS_TO_NAME else named_seeds(gain.seeds)
    unlike = "" if gain.equal_terms else "; not trained alike, so more than the method differs"
    spread = "95 % interval" if gain.delta.interval else "no interval, since one group of prompts has a single prompt"
    return f"{signed(gain.delta, 4)} on {gain.label} ({seeds}; {spread}{unlike})"


def _detectable(own: Comparison | None, shipped: Comparison | None) -> str:
    """The difference that so many trainings could have shown, given the spread within the larger set of them."""
    if own is None:
        return ""
    largest = max((gain for gain in (own, shipped) if gain), key=lambda gain: len(gain.seeds))
    if len(largest.seeds) < 2:
        return "One training seed says nothing about others: the spread between trainings is not known here."
    if all_same(largest.per_seed):
        return f"All {len(largest.seeds)} seeds have the same difference: the spread between trainings is not known here."
    spread, seeds = float(np.std(largest.per_seed, ddof=1)), counted(len(largest.seeds), "seed")
    text = (
        f"Trainings vary: the difference has a standard deviation of {spread:.3f} over {seeds}. Detectable with 80 % power: "
        f"{largest.detectable:.3f} with {seeds}"
    )
    if len(own.seeds) < len(largest.seeds):
        few = detectable(spread, len(own.seeds), len(largest.seeds) - 1)
        text += f", and {few:.3f} with {counted(len(own.seeds), 'seed')} by the spread of trainings alone"
    return f"{text}."


def _budgets(own: Comparison | None, shipped: Comparison | None) -> str:
    """How many images trainings drew, if not as many as the shipped ones; else empty."""
    if own is None or shipped is None or own.trained_on == shipped.trained_on:
        return ""
    yours, theirs = (" and ".join(f"{count:,}" for count in dict.fromkeys(one.trained_on)) for one in (own, shipped))
    return f"Your trainings drew {yours} images and the shipped ones {theirs}: their scores are of different budgets."


def _agreement(found: Agreement) -> str:
    if not found.runs:
        return "No shipped run has your settings and seed, so there is none to match."
    named = _named(found.runs)
    if found.differing:
        yours, theirs = (name or "not recorded" for name in found.machines)
        computed = f" Computed by: {yours}; the shipped ones: {theirs}." if any(found.machines) else ""
        return (
            f"Of the shipped runs with your settings and seed ({named}), these came out differently here: "
            f"{_named(found.differing)}. Processors and libraries differ in the last digits, and training amplifies that."
            f"{computed}"
        )
    return (
        f"Equal to the shipped runs to the last digit: {named}; {found.figures} scores and {found.verdicts:,} verdicts on "
        "images."
    )


def _named(runs: Sequence[tuple[str, int]]) -> str:
    own = [f"{method_label(method)} seed {seed}" for method, seed in runs if measured_on_own_task(method) and method != "base"]
    named = ["base"] * any(method == "base" for method, _ in runs) + own
    return ", ".join(named or [f"{method_label(method)} seed {seed}" for method, seed in runs])  # all of other tasks
