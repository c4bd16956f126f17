"""The cells of a matrix: one run per task, method and seed, its folder, its command, and how far it got."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from star import config as settings
from star.common.errors import UserError
from star.common.files import fault, read_json
from star.common.words import seeds_of
from star.config import Config, config_hash
from star.method.arms import ABLATION
from star.records.attempts import attempts
from star.records.results import GIVEN, METRICS, ROWS, VERDICTS, read_rows

SEEDS = (0, 1, 2)
AXES = ("task", "method", "seed")
OF_TRAINING = ("method.", "relevance.", "sampling.", "rewards.", "task.beta=", "train.beta=", "train.kl=", "train.guard=")
"""Prefixes of settings that do not matter to an untrained model."""


class State(StrEnum):
    """How far a cell got. One that failed or was cut off resumes from its last checkpoint."""

    DONE = "done"
    RUNNING = "running"
    FAILED = "failed"
    CUT_OFF = "cut off"
    NEW = "to do"


@dataclass(frozen=True, eq=False)
class Cell:
    """One run of a matrix.

    Attributes:
        command: the words of its command: ``star``, ``train``, ``task=geneval``, ...
        config: its settings.
        seed: of the training; None for the base, which is not trained.
    """

    command: tuple[str, ...]
    config: Config
    seed: int | None

    @property
    def task(self) -> str:
        """Its task's name."""
        return self.config.task.name

    @property
    def method(self) -> str:
        """Its method's name, ``base`` for an untrained model."""
        return "base" if self.seed is None else self.config.method.name

    @property
    def label(self) -> str:
        """Its name in messages."""
        return f"{self.task} base" if self.seed is None else f"{self.task} {self.method} seed {self.seed}"

    @property
    def folder(self) -> Path:
        """Where its run is kept."""
        return settings.base_folder(self.config) if self.seed is None else Path(self.config.run)

    @property
    def images(self) -> int:
        """How many images its training draws."""
        return self.config.train.epochs * self.drawn

    @property
    def drawn(self) -> int:
        """How many of them an epoch draws; 0 for the base, which is not trained."""
        train = self.config.train
        return 0 if self.seed is None else train.rollouts

    def measured(self) -> dict[str, Path]:
        """Its evaluation folders by task: its own task first, then the others."""
        own = {self.task: self.folder / "final"}
        return own if self.seed is None else own | {name: own[self.task] / name for name in settings.other_tasks(self.config)}

    def config_hash(self, task: str, seed: int | None = None) -> str:
        """The ``config_hash`` in its result rows of a task, or in those of the same run with another seed."""
        if self.seed is None:
            return config_hash(settings.base_identity(self.config))
        return config_hash(settings.identity(replace(self.config, seed=self.seed if seed is None else seed), task))

    def terms_hash(self) -> str:
        """What trainings must share to be compared, see :func:`star.config.identity.terms`; empty for the base."""
        return "" if self.seed is None else settings.terms(self.config)

    def state(self) -> State:
        """How far it got, judged by its folder. The version of the evaluator that measured it is not checked."""
        if all(self._has_rows(folder / ROWS, task) for task, folder in self.measured().items()) and not self.fault():
            return State.DONE
        if self.seed is None and self._otherwise():
            return State.NEW
        tries = attempts(self.folder)
        if tries and tries[-1]["reason"]:
            return State.FAILED
        return State.CUT_OFF if tries or (self.folder / "metrics.jsonl").exists() else State.NEW

    def fault(self) -> str:
        """What is wrong with its result files, in words; empty if nothing is. See :func:`star.common.files.fault`."""
        parts = (fault(folder, "summary.json", ROWS, VERDICTS, METRICS) for folder in self.measured().values())
        return next(filter(None, parts), "")

    def given(self) -> dict[str, str]:
        """The recorded digests of its ``model`` and ``prompts``, as far as they may change: :mod:`star.training.given`."""
        found = read_json(self.folder / "final" / (GIVEN if self.seed is None else "summary.json"))
        known = found if isinstance(found, dict) else {}
        return {name: known[name] for name in ("model", "prompts") if isinstance(known.get(name), str) and known[name]}

    def _otherwise(self) -> bool:
        """Whether its rows are of other evaluation settings, as a base's folder, which is one for all, may have."""
        rows = ((read_rows(folder / ROWS), task) for task, folder in self.measured().items())
        return any(known and known[0].config_hash != self.config_hash(task) for known, task in rows)

    def _has_rows(self, file: Path, task: str) -> bool:
        rows = read_rows(file)
        return bool(rows) and rows[0].config_hash == self.config_hash(task) and (file.parent / VERDICTS).exists()


def expand(words: Sequence[str]) -> list[Cell]:
    """The cells of a matrix, in the order in which they run.

    The bases of the tasks come first. After them, seeds are the outermost loop and methods the innermost: an interrupted
    matrix then has complete seeds, and arms that are compared run next to each other.

    Args:
        words: ``task=``, ``method=`` and ``seed=`` with lists (``0,2``) and ranges (``0..4``), or ``task=all`` (the tasks that
            the scale names an evaluator for) and ``method=all`` (the arms of the ablation); of repeated ones the last
            counts. All other words are overrides of every cell.

    Raises:
        UserError: a name, a range or an override that cannot be used.
    """
    axes = tuple(f"{axis}=" for axis in AXES)
    given = {word.partition("=")[0]: word for word in words if word.startswith(axes)}
    others = [word for word in words if not word.startswith(axes)]
    if signed := next((word for word in others if word.lstrip("+~").startswith(axes)), ""):
        raise UserError(f"{signed}: write {signed.lstrip('+~')}, without signs before it")
    if any(word.lstrip("+~").startswith("run=") for word in others):
        raise UserError("run=...: the cells of a matrix have their own folders; leave it out")
    known = settings.load(others)
    asked = given.get("task", "task=all")
    if known.task.prompts and ("," in asked or asked == "task=all"):
        raise UserError(
            f"task.prompts={known.task.prompts}: one task gives the other settings of these prompts, and {asked} means "
            "several; say task=pickscore, for instance"
        )
    tasks = _names(asked, sorted(known.evaluators))
    methods = _names(given.get("method", "method=all"), ABLATION)
    seeds = seeds_of(given["seed"]) if "seed" in given else SEEDS
    bases = [_base(task, others) for task in tasks]
    arms = [_arm(task, method, seed, others) for seed in seeds for task in tasks for method in methods]
    if len({(cell.task, cell.method, cell.seed) for cell in arms}) < len(arms):
        raise UserError(
            f"method.name={arms[0].method}: {', '.join(methods)} would share a name in the results; run each in a matrix "
            "of its own, with a name of its own"
        )
    return bases + arms


def same_given(done: Iterable[Cell]) -> dict[tuple[str, str], str]:
    """What cells that are done were given, see :meth:`Cell.given`: the model of all, and each task's prompts.

    Settings tell neither base weights nor prompts apart that were exchanged in their place.

    Returns:
        (``model`` or ``prompts``, the prompts' task or nothing) -> its digest.

    Raises:
        UserError: two of them were given others, so that their scores must be neither compared nor pooled.
    """
    found: dict[tuple[str, str], tuple[str, Cell]] = {}
    for cell in done:
        for name, digest in cell.given().items():
            known, before = found.setdefault((name, cell.task if name == "prompts" else ""), (digest, cell))
            if digest != known:
                what = "prompts" if name == "prompts" else "base weights"
                raise UserError(
                    f"{before.folder} and {cell.folder} were made with different {what} of the same name; delete the one that "
                    "is out of date, and the same command makes it anew"
                )
    return {place: digest for place, (digest, _) in found.items()}


def _names(word: str, every: Sequence[str]) -> Sequence[str]:
    axis, _, value = word.partition("=")
    names = every if value == "all" else list(dict.fromkeys(value.split(",")))
    for name in names:
        if name not in settings.options(axis):
            raise UserError(f"{word}: {settings.no_option(axis, name)}")
    return names


def _base(task: str, overrides: Sequence[str]) -> Cell:
    words = [f"task={task}", *(word for word in overrides if not word.lstrip("+~").startswith(OF_TRAINING))]
    return Cell(("star", "base", *words), settings.load(words), None)


def _arm(task: str, method: str, seed: int, overrides: Sequence[str]) -> Cell:
    words = [f"task={task}", f"method={method}", f"seed={seed}", *overrides]
    return Cell(("star", "train", *words), settings.load(words), seed)
