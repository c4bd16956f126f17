"""All that a report is made from: result files, per-image verdicts, curves and run folders, and what of these is missing."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from star.common.errors import UserError, short
from star.common.files import fault, visible
from star.config import options
from star.config.compose import of_scale
from star.method.arms import REFERENCE
from star.records.attempts import attempts
from star.records.code import is_commit
from star.records.comparison import Comparison, Trained, compare
from star.records.diff import find_paper
from star.records.folder import (
    COMMANDS,
    CURVES,
    EVALUATION,
    FIRST_UPDATES,
    GRADIENT,
    IMAGES,
    INFLUENCE,
    LASTING,
    NO_RESULTS,
    TYPED,
    belonging,
    cure,
    parse_csv,
    read_file,
    shipped_results,
)
from star.records.names import (
    METHOD,
    MethodName,
    family,
    is_mini,
    measured_on_own_task,
    method_label,
    plainness,
    reading_order,
)
from star.records.results import METRICS, ROWS, VERDICTS, PaperRow, Row, read_paper, read_rows, read_together, result_files
from star.records.summary import Summary, summarise, unlike
from star.records.tables import DIVERSITY
from star.report.verdict import SEEDS_FOR_A_CLAIM
from star.tasks import averaged, main_metric, paired_scores
from star.training.folder import RunFolder

TASKS = ("geneval", "ocr", "pickscore")
Cell = tuple[str, str, int, str]
"""Task, method, training seed and ``config_hash``: the :data:`EVALUATION` of result rows."""


@dataclass
class Collection:
    """What a report is made from.

    Attributes:
        folder: the results folder.
        scale: the scale, which the folder is named after.
        rows: the rows of all result files.
        paper: the published numbers.
        place: where run folders are looked for, see :func:`collect`.
        images: per-image verdicts with ``task``, ``method``, ``seed``, their rows' ``protocol`` and images seen in training
            (``trained_on``), and what trainings must share to be compared (``terms``); None if there are none.
        curves: a line per epoch with ``task``, ``method`` and ``seed``, which tell trainings apart; None if there are none.
        commands: the command of each run, as far as it is known.
        terms: what the training behind each evaluation must share with those that it is compared with; empty if not known.
        runs: the run folder of each of these results, as far as there is one; those of the plainest protocols first.
        missing: what is missing that a reader must know of, a sentence each.
    """

    folder: Path
    scale: str
    rows: list[Row]
    paper: list[PaperRow]
    place: Path = Path("runs")
    images: pd.DataFrame | None = None
    curves: pd.DataFrame | None = None
    commands: dict[Cell, str] = field(default_factory=dict)
    terms: dict[Cell, str] = field(default_factory=dict)
    runs: dict[Cell, Path] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    # Of this object alone: one made of it by dataclasses.replace may hold other verdicts.
    _compared: dict[tuple[str, ...], Comparison | None] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def tasks(self) -> list[str]:
        """The tasks that something was trained for or the base measured on, the known ones first.

        Tasks on which only checkpoints of other tasks were scored are left out.
        """
        found = {row.task for row in self.rows if measured_on_own_task(row.method)}
        return [task for task in TASKS if task in found] + sorted(found - set(TASKS))

    @cached_property
    def checks(self) -> list[str]:
        """The tasks that only check measurements: ``task=all`` leaves them out, and no claim is made of them."""
        known = of_scale("mini" if self.mini else "paper").evaluators
        return [task for task in self.tasks if task in options("task") and task not in known]

    def methods(self, task: str) -> list[str]:
        """The methods that were measured on the task they were trained for, in reading order."""
        return reading_order(row.method for row in self.rows if row.task == task and measured_on_own_task(row.method))

    def trained(self, task: str, method: str) -> bool:
        """Whether this project trained it, unlike the base and released weights."""
        return any(row.updates for row in self.rows if (row.task, row.method) == (task, method))

    def trained_alike(self, task: str, arm: str, reference: str, protocol: str) -> bool:
        """Whether all trainings of two methods that a protocol judged are equally long and alike, as far as is known."""
        place = task, self.main_metric(task), protocol
        scores = [row for row in self.rows if (row.task, row.metric, row.protocol) == place]
        ours, theirs = ([self.trained_as(row) for row in scores if row.method == method] for method in (arm, reference))
        return all(one.like(other) for one in ours for other in theirs)

    def trained_as(self, row: Row) -> Trained:
        """The training that a row scores on the task it was trained for."""
        judged = (row.images, row.prompts)
        return Trained(row.method, row.value, row.images_seen, self.terms.get(cell_of(row), ""), judged)

    def seeds(self, task: str, method: str) -> set[int]:
        """The seeds that a method was measured with."""
        return {row.seed for row in self.rows if (row.task, row.method) == (task, method)}

    @cached_property
    def summaries(self) -> list[Summary]:
        """One estimate per task, metric, protocol and method."""
        return summarise(self.rows)

    def summary(self, task: str, metric: str, method: str, protocol: str | None = None) -> Summary | None:
        """One summary; without a protocol, that of the protocol with the most seeds."""
        found = [s for s in self.summaries if (s.task, s.metric, s.method) == (task, metric, method)]
        return max((s for s in found if protocol in (None, s.protocol)), key=lambda s: s.seeds, default=None)

    def difference(self, task: str, arm: str, reference: str) -> Comparison | None:
        """Arm minus reference on the task's main score; None if they cannot be compared."""
        return self.compare(task, arm, reference, *self.main_score(task))

    def compare(self, task: str, arm: str, reference: str, column: str, label: str) -> Comparison | None:
        """Arm minus reference on one of the :meth:`paired` scores; None if they cannot be compared."""
        key = task, arm, reference, column, label
        if key not in self._compared:  # it is asked for by several chapters, and takes a tenth of a second
            self._compared[key] = compare(self.images_of(task), arm, reference, column, label)
        return self._compared[key]

    def images_of(self, task: str) -> pd.DataFrame:
        """The per-image verdicts on a task; empty, without columns, if there are none of any task."""
        return pd.DataFrame() if self.images is None else self._images_by_task.get(task, self.images[:0])

    @cached_property
    def _images_by_task(self) -> dict[str, pd.DataFrame]:
        """All verdicts, parted once: every comparison asks for those of its task."""
        return {} if self.images is None else {str(task): part for task, part in self.images.groupby("task", sort=False)}

    def main_metric(self, task: str) -> str | None:
        """The metric that methods are compared by, see :func:`star.tasks.main_metric`."""
        return main_metric(task, {row.metric for row in self.rows if row.task == task} - {DIVERSITY})

    def paired(self, task: str) -> dict[str, str]:
        """The scores that compare a task's images, column -> label, the main one first: :func:`star.tasks.paired_scores`."""
        return paired_scores(self.main_metric(task))

    def main_score(self, task: str) -> tuple[str, str]:
        """Column and label of the first of :meth:`paired`."""
        return next(iter(self.paired(task).items()))

    @property
    def is_shipped(self) -> bool:
        """Whether these are the results that ship with this project."""
        return self.folder.resolve() == shipped_results(self.scale).resolve()

    @cached_property
    def shipped(self) -> "Collection | None":
        """The shipped results of the same scale; None if they have none of these tasks.

        Raises:
            UserError: a shipped file does not follow its schema.
        """
        folder = shipped_results(self.scale)
        there = any((folder / f"{task}.csv").exists() for task in self.tasks)
        return collect(folder, self.place) if there else None

    @cached_property
    def gradient(self) -> pd.DataFrame | None:
        """What ``star bench gradient`` measured; None if nothing."""
        return self._measured(GRADIENT)

    @cached_property
    def influence(self) -> pd.DataFrame | None:
        """What ``star bench influence`` measured; None if nothing."""
        return self._measured(INFLUENCE)

    @cached_property
    def first_updates(self) -> pd.DataFrame | None:
        """What ``star bench first_updates`` measured; None if nothing."""
        return self._measured(FIRST_UPDATES)

    @cached_property
    def lasting(self) -> pd.DataFrame | None:
        """What it measured in longer trainings; None if nothing."""
        return self._measured(LASTING)

    def _measured(self, name: str) -> pd.DataFrame | None:
        """A table of ``star bench``, its tasks in the order of reports; None if there is none."""
        file = self.folder / name
        if not file.exists():
            return None
        table = read_file(file, **TYPED)
        tasks = [*TASKS, *sorted(set(table["task"]) - set(TASKS))]
        return table.sort_values("task", key=lambda column: column.map(tasks.index), kind="stable", ignore_index=True)

    def papers_gain(self, task: str) -> float | None:
        """The STAR minus Flow-GRPO that equals the paper's as a share of Flow-GRPO's gain over the base; None if not known."""
        metric = self.main_metric(task)
        there = [row for row in self.paper if (row.task, row.metric) == (task, metric)]
        published = {row.method: float(row.value) for row in there if row.value is not None}
        goal = self.summary(task, metric or "", REFERENCE)
        base = goal and self.summary(task, metric or "", "base", goal.protocol)
        if not {"base", REFERENCE, "star"} <= published.keys() or goal is None or base is None:
            return None
        share = (published["star"] - published[REFERENCE]) / (published[REFERENCE] - published["base"])
        own = goal.estimate.value - base.estimate.value
        return share * own if own > 0 else None

    @property
    def mini(self) -> bool:
        """Whether any of the numbers comes from the embedded world."""
        return any(is_mini(row.protocol) for row in self.rows)


def collect(folder: Path, runs: Path) -> Collection:
    """Read a results folder, and take from the run folders what it lacks.

    Args:
        folder: ``results/<scale>``.
        runs: what holds ``<scale>/<task>/<method>/...``; need not exist.

    Raises:
        UserError: there is no result file, or one that does not follow its schema.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; run `star reproduce geneval` to make results, or check the name")
    files = result_files(folder)
    rows = read_together(files)
    if not rows:
        raise UserError(f"{folder}: no result file in it; run `star reproduce geneval` first, or name results/<scale>")
    found = Collection(folder, folder.resolve().name, rows, read_paper(find_paper()), runs)
    found.runs = _runs(runs / found.scale, rows)
    for cell, path in list(found.runs.items()):
        if told := fault(path / "final", ROWS, VERDICTS, METRICS):
            del found.runs[cell]
            found.missing.append(f"A run folder is not used: {told}.")
    if others := [file.name for file in visible(folder.glob("*.csv")) if file not in files and file.name not in NO_RESULTS]:
        found.missing.append(f"Not read, because their columns are not those of result files: {', '.join(others)}.")
    found.missing += [*_unmeasured(found), *unlike(found.summaries), *_stopped(found, runs), *_mixed(found)]
    if (folder / COMMANDS).exists():
        recorded: dict[Cell, str] = {}
        for line in belonging(read_file(folder / COMMANDS, **TYPED), rows).to_dict("records"):
            cell = line["task"], line["method"], line["seed"], line["config_hash"]
            found.commands[cell], recorded[cell] = line["command"], line.get("terms", "")
        found.terms = _terms(rows, recorded)
    images = _table(found, IMAGES, _images_of_run, "per-image verdicts", "they are in no paired comparison")
    if images is not None:
        found.images = _agreeing(found, _with_terms(_with_numbers(found, images), rows, found.terms))
    curves = _table(found, CURVES, _curve_of_run, "training curves", "how fast they learned is not shown")
    found.curves = None if curves is None else _plainest(found, curves)
    if not found.runs:
        found.missing.append(
            f"No run folders of these results in {runs / found.scale}: settings, maps and sample images come from earlier "
            "reports or are left out."
        )
    return found


def cell_of(row: Row) -> Cell:
    """Which evaluation a row is of."""
    return row.task, row.method, row.seed, row.config_hash


def base_of(found: Collection, task: str, variant: str) -> str:
    """The untrained model for the methods of a :func:`family`, whether or not it was measured on the task.

    It shares as many of their changes as one that was measured, and the base model in any case: a variant of the evaluation
    alone has a base of its own, but another model never starts from the scale's.
    """
    changes = MethodName.parse(f"base{variant}").changes
    shared = ["".join(f"+{change}" for change in changes[:count]) for count in range(len(changes), -1, -1)]
    model = f"+{changes[0]}" if changes and changes[0] in options("model") else ""
    there = found.methods(task)
    return next((f"base{own}" for own in shared if own.startswith(model) and f"base{own}" in there), f"base{model}")


def families(methods: Iterable[str]) -> list[str]:
    """The families of trained methods, the plain one first; that alone if nothing was trained."""
    found = sorted({family(method) for method in methods if not MethodName.parse(method).untrained})
    return found or [""]


def titled(task: str, variant: str) -> str:
    """A task with the changes of a family of methods: ``ocr, fast``."""
    return ", ".join([task, *MethodName.parse(f"base{variant}").changes])


def _runs(folder: Path, rows: list[Row]) -> dict[Cell, Path]:
    """The finished run folders with the settings of the rows: the base's in a task's folder, the others in their method's."""
    protocols = {cell_of(row): row.protocol for row in rows}
    found = {}
    for file in sorted([*folder.glob(f"*/*/final/{ROWS}"), *folder.glob(f"*/*/*/final/{ROWS}")]):
        for first in read_rows(file)[:1]:
            if cell_of(first) in protocols:
                found[cell_of(first)] = file.parent.parent
    return {cell: found[cell] for cell in sorted(found, key=lambda cell: plainness(protocols[cell]))}


def _with_numbers(found: Collection, images: pd.DataFrame) -> pd.DataFrame:
    """The verdicts, in which the scores that methods are compared by are now numbers, truth values or empty.

    A column with truth values on one task and numbers on another is read from a file as text.

    Raises:
        UserError: a score is none of these; names the image.
    """
    file = found.folder / IMAGES
    for task, part in images.groupby("task"):
        for column in (name for name in dict.fromkeys([*found.paired(str(task)), "reward"]) if name in part):
            scores = pd.to_numeric(part[column].replace({"True": 1, "False": 0}).astype(object), errors="coerce")
            for line in part[~(np.isfinite(scores) | part[column].isna())].itertuples():
                raise UserError(
                    f"{file} or its run folder: {column} of {task}, {line.method}, seed {line.seed}, {line.prompt!r}, image "
                    f"{line.image} is no number; {cure(file)}"
                )
            if any(isinstance(value, str) for value in part[column]):
                images[column] = images[column].astype(object)
                images.loc[part.index, column] = scores
    return images


def _with_terms(images: pd.DataFrame, rows: list[Row], terms: Mapping[Cell, str]) -> pd.DataFrame:
    """The verdicts with what else decides whether two methods may be compared: protocol, images trained on and terms."""
    known = [(*cell_of(r), r.protocol, r.images_seen, terms.get(cell_of(r), "")) for r in rows]
    table = pd.DataFrame(known, columns=[*EVALUATION, "protocol", "trained_on", "terms"])
    return images.merge(table.drop_duplicates(EVALUATION), on=EVALUATION)


def _agreeing(found: Collection, images: pd.DataFrame) -> pd.DataFrame:
    """The verdicts without those of evaluations whose result rows they contradict; tells of these."""
    columns = [*EVALUATION, "protocol"]
    mains = {task: found.main_metric(task) for task in {row.task for row in found.rows}}
    rows = {(*cell_of(row), row.protocol): row for row in found.rows if row.metric == mains[row.task]}
    parts = ((place, part) for place, part in images.groupby(columns) if place in rows)
    doubted = {place: told for place, part in parts if (told := _contradiction(part, rows[place]))}
    if not doubted:
        return images
    named = ", ".join(f"{task} {method} seed {seed} ({told})" for (task, method, seed, *_), told in doubted.items())
    found.missing.append(f"{IMAGES} or the run folders contradict result rows: {named}. They are in no paired comparison.")
    return images[~pd.MultiIndex.from_frame(images[columns]).isin(doubted)]


def _contradiction(verdicts: pd.DataFrame, row: Row) -> str:
    """How the verdicts of one evaluation contradict its row of the main score, in words; empty if they do not."""
    column, prompts = averaged(row.metric), verdicts["prompt"].nunique()
    if column is None:  # an evaluator of one's own may leave images out, or weight them
        return ""
    if (len(verdicts), prompts) != (row.images, row.prompts):
        return f"{len(verdicts):,} verdicts on {prompts:,} prompts for {row.images:,} on {row.prompts:,}"
    # A benchmark may list a prompt twice, but each has all its images.
    if len(verdicts.drop_duplicates(["prompt", "image"])) < prompts * verdicts["image"].nunique():
        return "verdicts that stand twice in place of others"
    if column not in verdicts:
        return ""
    scores = verdicts[column].astype(float)
    mean = float(scores.groupby(verdicts["stratum"]).mean().mean())
    if not abs(mean - row.value) <= 1e-6:  # rows have six digits
        return f"a mean of {mean:.6f} for {row.value:.6f}"
    return ""


def _training(row: Row) -> tuple[Any, ...]:
    """What the rows of one training share, whatever it was judged on: for ``star:ocr`` on geneval it is ``star`` on ocr.

    Trainings with other settings may have the same name and seed, but not have taken the same tenth of a second.
    """
    name = MethodName.parse(row.method)
    made = row.updates, row.images_seen, row.seconds, row.commit
    return name.trained_for or row.task, name.at_home, row.seed, *made


def _terms(rows: Iterable[Row], recorded: Mapping[Cell, str]) -> dict[Cell, str]:
    """The terms of the training behind each evaluation, which may be recorded with another evaluation of that training."""
    known: dict[tuple[Any, ...], set[str]] = {}
    for row in rows:
        known.setdefault(_training(row), set()).update({recorded.get(cell_of(row), "")} - {""})
    return {cell_of(row): recorded.get(cell_of(row)) or " or ".join(sorted(known[_training(row)])) for row in rows}


def _plainest(found: Collection, curves: pd.DataFrame) -> pd.DataFrame:
    """The curves with one of each task, method and seed: of several evaluations, that of the plainest protocol.

    Raises:
        UserError: the images of a training do not grow from epoch to epoch.
    """
    grown = curves.sort_values([*EVALUATION, "epoch"]).groupby(EVALUATION)["images_seen"].diff()
    for line in curves.loc[grown.index[grown <= 0]].itertuples():
        file = found.folder / CURVES
        raise UserError(
            f"{file} or its run folder: images_seen of {line.task}, {line.method}, seed {line.seed} does not grow in epoch "
            f"{line.epoch}; {cure(file)}"
        )
    rows = {cell_of(row): row for row in found.rows}
    cells = sorted(set(curves[EVALUATION].itertuples(index=False, name=None)), key=lambda cell: plainness(rows[cell].protocol))
    first = {cell[:-1]: cell for cell in reversed(cells)}
    if others := sorted({cell[:-1] for cell in cells if _training(rows[cell]) != _training(rows[first[cell[:-1]]])}):
        told = ", ".join(f"{task} {method} seed {seed}" for task, method, seed in others)
        found.missing.append(f"Trained in several ways, of which the curves are those of the plainest protocol: {told}.")
    return curves[pd.MultiIndex.from_frame(curves[EVALUATION]).isin(first.values())]


def _unmeasured(found: Collection) -> list[str]:
    """Sentences on tasks without results and arms with few seeds; a task's findings name the arms that it lacks."""
    sentences = []
    if absent := [task for task in TASKS if task not in found.tasks]:
        sentences.append(f"Tasks that were not run: {', '.join(absent)}.")
    for task in found.tasks:
        trained = [method for method in found.methods(task) if found.trained(task, method)]
        seeds = {method: len(found.seeds(task, method)) for method in trained}
        most = max(seeds.values(), default=0)
        if 0 < most < SEEDS_FOR_A_CLAIM and task not in found.checks:
            sentences.append(f"On {task} no arm has more training seeds than {most}; a claim needs {SEEDS_FOR_A_CLAIM}.")
        if few := [f"{method} ({count})" for method, count in seeds.items() if count < most]:
            sentences.append(f"On {task} some arms have fewer than {most} seeds: {', '.join(few)}.")
    return sentences


def _stopped(found: Collection, runs: Path) -> list[str]:
    """Sentences on runs of these tasks that stopped without results, which readers of the other results must know of."""
    if found.is_shipped:
        return []  # runs made here are not those of the shipped results
    there = {(row.task, row.method, row.seed) for row in found.rows}
    sentences = []
    for folder in sorted((runs / found.scale).glob("*/*/seed*")):
        task, method, seed = folder.parts[-3], folder.parts[-2], re.match(r"seed(\d+)", folder.name)
        tries = attempts(folder)
        if not seed or task not in found.tasks or (task, method, int(seed[1])) in there or not (tries and tries[-1]["reason"]):
            continue
        if (folder / "final" / ROWS).exists() or not METHOD.fullmatch(method):  # finished by star train; somebody's copy
            continue
        reason = short(tries[-1]["reason"])
        sentences.append(f"{task}, {method_label(method)} seed {seed[1]} stopped without results: {reason}.")
    return sentences


def _mixed(found: Collection) -> list[str]:
    """Sentences on tasks whose trainings used several commits, or code that is in no commit."""
    sentences = []
    for task in found.tasks:
        commits = sorted(
            {row.commit for row in found.rows if row.task == task and row.updates and measured_on_own_task(row.method)}
        )
        if len(commits) > 1 or not all(map(is_commit, commits)):
            sentences.append(f"Trainings on {task} used the code of {', '.join(commits)}.")
    return sentences


def _table(
    found: Collection, name: str, of_run: Callable[[Path], pd.DataFrame | None], what: str, consequence: str
) -> pd.DataFrame | None:
    """The lines of a file of the results folder that belong to these results, completed from the run folders."""
    file = found.folder / name
    current = belonging(read_file(file, **TYPED), found.rows) if file.exists() else pd.DataFrame(columns=EVALUATION)
    there = set(current[EVALUATION].itertuples(index=False, name=None))
    cells = {cell_of(row) for row in found.rows if measured_on_own_task(row.method)}
    needed = {cell for cell in cells if name != CURVES or found.trained(*cell[:2])}
    parts = [current] if len(current) else []
    for cell in sorted(needed - there):
        path = found.runs.get(cell)
        part = None if path is None else of_run(path)
        if part is not None:
            task, method, seed, settings = cell
            parts.append(part.assign(task=task, method=method, seed=seed, config_hash=settings))
            there.add(cell)
    if lacking := sorted(needed - there):
        told = dict.fromkeys(f"{task} {method} seed {seed}" for task, method, seed, _ in lacking)
        runs = "any run" if len(lacking) == len(needed) else ", ".join(told)
        found.missing.append(f"Neither {name} nor the run folders have the {what} of {runs}: {consequence}.")
    return pd.concat(parts, ignore_index=True) if parts else None


def _images_of_run(path: Path) -> pd.DataFrame | None:
    file = path / "final" / VERDICTS
    return parse_csv(file, **TYPED) if file.exists() else None


def _curve_of_run(path: Path) -> pd.DataFrame | None:
    lines = RunFolder(path).metrics()
    return pd.DataFrame(lines) if lines else None
