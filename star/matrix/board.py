"""What a matrix shows while it runs: a live table on a terminal, a plain line now and then in a log."""

import sys
import time
from collections import Counter
from collections.abc import Mapping

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from star.common.console import log
from star.common.progress import clock
from star.matrix.cells import Cell, State
from star.matrix.estimate import total
from star.training.folder import RunFolder

DRAW_SECONDS = 1.0
LOG_SECONDS = 60.0
MARKS = {
    State.DONE: ("●", "green"),
    State.RUNNING: ("▶", "yellow"),
    State.FAILED: ("✗", "red"),
    State.CUT_OFF: ("◐", "dim"),
    State.NEW: ("·", "dim"),
}


class Board:
    """The states of a matrix's cells and their display; a context manager."""

    def __init__(self, states: Mapping[Cell, State], at_once: int = 1) -> None:
        """
        Args:
            states: of all cells, in order. Failed cells are tried again, so they count as left.
            at_once: how many cells run side by side, as far as is known.
        """
        retried = {State.FAILED: State.CUT_OFF}
        self.states = {cell: retried.get(state, state) for cell, state in states.items()}
        self.reasons: dict[Cell, str] = {}
        self._started = self._looked = self._drawn = time.monotonic()
        self._at_once = at_once
        self._left = total(self.states, at_once)
        console = Console(stderr=True)
        self._live = Live(console=console, auto_refresh=False, transient=True) if sys.stderr.isatty() else None

    def __enter__(self) -> "Board":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def update(self, cell: Cell, state: State, reason: str = "") -> None:
        """Record the state of a cell, also if it still runs, and show it when due."""
        changed = self.states[cell] is not state
        self.states[cell] = state
        self.reasons.pop(cell, None)  # of an earlier attempt
        if reason:
            self.reasons[cell] = reason
        now = time.monotonic()
        due = now - self._looked >= LOG_SECONDS
        if changed or due:
            self._looked, self._left = now, total(self.states, self._at_once)
        if self._live and (changed or now - self._drawn >= DRAW_SECONDS):
            self._drawn = now
            self._live.update(self._table(), refresh=True)
        elif not self._live and (changed or due):
            ended = [] if state is State.RUNNING else [f"{cell.label}: {state} {reason}".strip()]
            log("; ".join([self.line(), *ended, *self._running()]))

    def line(self) -> str:
        """The counts and the time left: ``matrix: 3 done, 1 running, 0 failed, 17 left, about 1:20:00``."""
        counts = Counter(self.states.values())
        waiting = counts[State.NEW] + counts[State.CUT_OFF]
        shown = f"{counts[State.DONE]} done, {counts[State.RUNNING]} running, {counts[State.FAILED]} failed, {waiting} left"
        return f"matrix: {shown}, {self._left}"

    def _table(self) -> Group:
        """Methods by tasks, a mark per seed; below it what runs and what failed."""
        tasks = list(dict.fromkeys(cell.task for cell in self.states))
        grid = Table()
        for heading in ("", *tasks):
            grid.add_column(heading)
        for method in dict.fromkeys(cell.method for cell in self.states):
            marks = {task: Text() for task in tasks}
            for cell, state in self.states.items():
                if cell.method == method:
                    marks[cell.task].append(*MARKS[state])
            grid.add_row(method, *marks.values())
        failed = [f"{cell.label} failed: {reason}" for cell, reason in self.reasons.items()]
        elapsed = clock(time.monotonic() - self._started)
        told = [_legend(), f"{self.line()}, {elapsed} elapsed", *self._running(), *self._next(), *failed]
        return Group(grid, *map(Text, told))

    def _running(self) -> list[str]:
        return [f"{cell.label}: {_progress(cell)}" for cell, state in self.states.items() if state is State.RUNNING]

    def _next(self) -> list[str]:
        waiting = [cell.label for cell, state in self.states.items() if state in (State.NEW, State.CUT_OFF)]
        return [f"next: {waiting[0]}"] if waiting else []


def _legend() -> str:
    return "a mark per seed: " + "  ".join(f"{mark} {state}" for state, (mark, _) in MARKS.items())


def _progress(cell: Cell) -> str:
    line = RunFolder(cell.folder).last()
    return f"epoch {line['epoch']} of {cell.config.train.epochs}, reward {line['reward']:.3f}" if line else "running"
