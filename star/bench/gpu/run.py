"""The command ``star bench gpu``: chooses the steps, keeps to the time budget and records the figures."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from star import config
from star.bench.gpu.record import Line, Record, told
from star.bench.gpu.steps import STEPS, Step
from star.bench.gpu.worker import Worker
from star.common.errors import UserError
from star.common.files import check_room
from star.common.launched import check_alone
from star.common.signals import ending_like_ctrl_c
from star.common.words import own_words
from star.config.compose import of_scale
from star.records.code import commit

BUDGET = 600.0
FOLDER = "runs/results/gpu"
CUDA_TESTS = "pytest -n 8 tests/method/test_attention.py tests/training/test_rollout.py tests/training/test_trainer.py"
"""The tests that behave differently where there is a GPU."""

OVERRUN = 3.0
START = 60.0
"""A step is taken to hang after :data:`OVERRUN` times its expected seconds plus :data:`START` seconds."""

CPU_PACE = 0.05
"""Expected seconds of a step with toy sizes on a CPU, relative to those on a GPU."""


@dataclass(frozen=True)
class Asked:
    """The words of the command.

    Attributes:
        steps: to measure, in order.
        budget: seconds for the whole command.
        folder: of the files.
        overrides: settings of all runs.
        command: as it was typed.
    """

    steps: tuple[Step, ...]
    budget: float
    folder: Path
    overrides: tuple[str, ...]
    command: str


@dataclass
class Measured:
    """What is known about a step that is being measured."""

    step: Step
    began: float = field(default_factory=time.monotonic)
    state: str = "interrupted"
    reason: str = "the command was interrupted"
    figures: list[dict[str, Any]] = field(default_factory=list)


def parse(words: Sequence[str]) -> Asked:
    """The words of the command: ``only=A,B``, ``budget=SECONDS``, ``out=FOLDER`` and settings.

    Raises:
        UserError: an unknown step or setting, or a budget that is no number.
    """
    own, overrides = own_words(words, ("only", "budget", "out"))
    names = [step.name for step in STEPS]
    only = own["only"].split(",") if "only" in own else names
    if wrong := [name for name in only if name not in names]:
        raise UserError(f"only={own['only']}: there is no step {wrong[0]!r}; there are: {', '.join(names)}")
    # Wrong settings are reported before anything is built.
    given, known = config.load(["scale=paper", *overrides], own_folder=False).model, of_scale("paper").model
    for name in ("kind", "path"):
        if (value := getattr(given, name)) != getattr(known, name):
            word = f"model.{name}={'null' if value is None else value}"
            raise UserError(f"{word}: star bench gpu measures SD3.5 Medium's shape alone; leave it out")
    return Asked(
        steps=tuple(step for step in STEPS if step.name in only),
        budget=_seconds(own.get("budget", str(BUDGET))),
        folder=Path(own.get("out", FOLDER)),
        overrides=overrides,
        command=" ".join(["star bench gpu", *words]),
    )


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise UserError(f"budget={text} is not allowed; write seconds, e.g. budget={BUDGET:.0f}")
    return value


def run(words: Sequence[str]) -> int:
    """Measure, print every figure as it comes, and write the files; see :func:`parse`.

    Returns:
        the exit code: 1 if a step failed.

    Raises:
        UserError: words that cannot be used, or several processes.
        RunStopped: the process that measures does not start.
        KeyboardInterrupt: the command was interrupted; what was measured until then is in the files.
    """
    check_alone("star bench gpu")
    asked = parse(words)
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    check_room(asked.folder, "the table")
    record = Record(asked.folder, kind)
    if kind == "cpu":
        print("star: no GPU: a model of toy size shows that every step runs; its figures say nothing about a GPU", flush=True)
    with ending_like_ctrl_c():  # so that what was measured is recorded
        states = list(_steps(asked, record, 1.0 if kind == "cuda" else CPU_PACE))
    print(f"\ntable: {record.table}; all figures: {record.lines}\nthe tests that see a GPU: {CUDA_TESTS}", flush=True)
    return 1 if "failed" in states else 0


def _steps(asked: Asked, record: Record, pace: float) -> Iterator[str]:
    """Measure the steps and yield the state of each once it is recorded."""
    ends = time.monotonic() + asked.budget
    about = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": asked.command,
        "commit": commit(),
    }
    worker = Worker(asked.overrides)
    try:
        for step in asked.steps:
            left, expected = ends - time.monotonic(), pace * step.seconds
            if expected > left:
                found = Measured(step, state="skipped", reason=f"{expected:.0f} s expected, {max(0, left):.0f} s left")
            else:
                worker = _ready(worker, asked)
                found = Measured(step)
            doing = f"skipped, {found.reason}" if found.state == "skipped" else step.about
            print(f"\n{step.name}: {doing}", flush=True)
            try:
                if found.state != "skipped":
                    _measure(worker, found, min(OVERRUN * expected + START, ends - time.monotonic()))
            finally:
                record.add(about | {"machine": worker.facts} | _line(found))
            yield found.state
    finally:
        worker.close()


def _ready(worker: Worker, asked: Asked) -> Worker:
    """The worker, or a new one if it has died."""
    if worker.alive:
        return worker
    worker.close()
    return Worker(asked.overrides)


def _measure(worker: Worker, found: Measured, limit: float) -> None:
    for message in worker.measure(found.step, limit):
        if "figure" in message:
            found.figures.append(message["figure"])
            print(f"  {told(message['figure'])}", flush=True)
        else:
            found.state, found.reason = message["state"], message["reason"]
    if found.state == "failed":
        print(f"  failed: {found.reason}", flush=True)


def _line(found: Measured) -> Line:
    taken = 0.0 if found.state == "skipped" else time.monotonic() - found.began
    return {
        "step": found.step.name,
        "state": found.state,
        "reason": found.reason if found.state != "done" else "",
        "seconds": round(taken, 2),
        "figures": found.figures,
    }
