"""How long the cells of a matrix take, estimated from earlier runs."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from star.common.progress import clock
from star.matrix.cells import Cell, State
from star.records import results
from star.records.attempts import attempts
from star.records.folder import own_results, shipped_results
from star.records.names import measured_on_own_task
from star.training.folder import RunFolder


class Pace(NamedTuple):
    """How fast a task's runs were.

    Attributes:
        image: seconds of training per image that it draws.
        rest: seconds of a run besides its training, mostly for its evaluation; 0 if unknown.
    """

    image: float
    rest: float


def pace(scale: str, task: str, drawn: int) -> Pace | None:
    """The mean pace of a task's runs; None if nothing ever ran.

    It is taken from finished runs, else from runs under way, else from this machine's result files, and last from the shipped
    ones, whose runs were on another machine.

    Args:
        scale, task: of the runs.
        drawn: images per epoch; only if no run draws that many do others count, such as trials or runs on fewer GPUs.
    """
    every = [file.parent for file in Path("runs", scale, task).glob("*/*/metrics.jsonl")]
    folders = [folder for folder in every if _drawn(folder) == drawn] or every
    here, elsewhere = (_recorded(place(scale) / f"{task}.csv") for place in (own_results, shipped_results))
    for costs in (map(_finished, folders), map(_under_way, folders), here, elsewhere):
        known = [cost for cost in costs if cost]
        if images := sum(images for _, images in known):
            beside = [rest for rest in map(_rest, folders) if rest is not None]
            return Pace(sum(seconds for seconds, _ in known) / images, sum(beside) / len(beside) if beside else 0.0)
    return None


def left(cell: Cell, state: State, rate: Pace | None) -> float | None:
    """Seconds until a cell is done, at a :func:`pace`; None if unknown, as for any base that is not done."""
    if state is State.DONE:
        return 0.0
    if not cell.images:
        return None
    own = RunFolder(cell.folder).last()
    if own:  # the best estimate of its pace is its own
        rate = Pace(own["seconds"] / own["images_seen"], rate.rest if rate else 0.0)
    if rate is None:
        return None
    return rate.image * cell.images * max(0.0, 1 - (own["epoch"] if own else 0) / cell.config.train.epochs) + rate.rest


def expected(cells: Mapping[Cell, State]) -> dict[Cell, float | None]:
    """Seconds until each cell is done, see :func:`left`."""
    kinds = {cell: (cell.config.scale, cell.task, cell.drawn) for cell in cells}
    paces = {kind: pace(*kind) for kind in dict.fromkeys(kinds.values())}
    return {cell: left(cell, state, paces[kinds[cell]]) for cell, state in cells.items()}


def total(cells: Mapping[Cell, State], at_once: int = 1) -> str:
    """The time until a matrix is done, in words: ``about 5:20:00``. Failed cells do not count: they are over.

    Args:
        cells: with their states.
        at_once: how many will run side by side; if more are running, that number counts.
    """
    times = [seconds for cell, seconds in expected(cells).items() if cells[cell] is not State.FAILED]
    unknown = sum(seconds is None for seconds in times)
    known = [seconds for seconds in times if seconds]
    if unknown and not known:
        return "?"
    running = sum(state is State.RUNNING for state in cells.values())
    lanes = [0.0] * max(1, running, min(at_once, len(known)))
    for seconds in known:  # in order, each in the lane that is free first
        lanes[lanes.index(min(lanes))] += seconds
    return f"about {clock(max(lanes))}" + (f" and {unknown} of unknown time" if unknown else "")


def epochs(cell: Cell) -> int:
    """How many epochs of a cell's training are done."""
    line = RunFolder(cell.folder).last()
    return line["epoch"] if line else 0


def took(folder: Path) -> str:
    """Wall-clock time of the recorded attempts at a cell; if there are none, as after ``star train``, that of its training."""
    if tries := attempts(folder):
        return clock(_seconds(tries))
    summary = RunFolder(folder).summary()
    return f"{clock(summary['seconds'])} of training" if summary else "?"


def _finished(folder: Path) -> tuple[float, int] | None:
    """Seconds and images of a finished training; None if it is not finished."""
    summary = RunFolder(folder).summary()
    return (summary["seconds"], summary["images_seen"]) if summary else None


def _rest(folder: Path) -> float | None:
    """Seconds of a finished run besides its training; None if it is not finished, or has no record of its attempts."""
    summary, tries = RunFolder(folder).summary(), attempts(folder)
    # An attempt that was killed with its matrix left no record, so the record may be short of the training alone.
    return max(_seconds(tries) - summary["seconds"], 0.0) if summary and tries else None


def _seconds(tries: Iterable[dict]) -> float:
    return float(sum(attempt["seconds"] for attempt in tries))


def _recorded(file: Path) -> Iterator[tuple[float, int]]:
    """Seconds and images of the trainings in a result file, which is read only when they are asked for."""
    rows = results.read(file) if file.exists() else []
    yield from {
        (row.method, row.seed): (row.seconds, row.images_seen) for row in rows if measured_on_own_task(row.method)
    }.values()


def _under_way(folder: Path) -> tuple[float, int]:
    line = RunFolder(folder).last()
    return (line["seconds"], line["images_seen"]) if line else (0.0, 0)


def _drawn(folder: Path) -> float:
    """Images per epoch of a run; 0 if no epoch is done."""
    line = RunFolder(folder).last()
    return line["images_seen"] / line["epoch"] if line else 0.0
