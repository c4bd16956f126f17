"""Progress bars on the terminal; a plain line now and then where standard error is a file."""

import sys
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from star.common.console import log

FIRST_SECONDS, LOG_SECONDS = 5.0, 30.0

Item = TypeVar("Item")

_display: Progress | None = None  # the one display on the terminal: a bar inside another is one more line of it


class Bar:
    """One line of progress; made by :func:`bar`."""

    def __init__(self, display: Progress, description: str, total: int | None) -> None:
        self._display = display
        self._task = display.add_task(description, total=total)
        self._due = display.get_time() + FIRST_SECONDS

    def advance(self, steps: int = 1) -> None:
        """Move on by so many steps."""
        self._display.advance(self._task, steps)
        # A disabled display is one that goes to a file: rich still counts, and the lines are made from its counts.
        now = self._display.get_time()
        if self._display.disable and now >= self._due:
            self._due = now + LOG_SECONDS
            log(self._line())

    def update(self, description: str) -> None:
        """Say what is being done now, e.g. with the reward of the last epoch."""
        self._display.update(self._task, description=description)

    def remove(self) -> None:
        """Take the line off the display."""
        self._display.remove_task(self._task)

    def _line(self) -> str:
        task = next(task for task in self._display.tasks if task.id == self._task)
        total = "?" if task.total is None else f"{task.total:.0f}"
        left = "" if task.time_remaining is None else f", {clock(task.time_remaining)} left"
        return f"{task.description}: {task.completed:.0f}/{total}, {clock(task.elapsed or 0.0)} elapsed{left}"


@contextmanager
def bar(description: str, total: int | None = None) -> Iterator[Bar]:
    """A progress bar on standard error with count, elapsed time and time left.

    Where standard error is not a terminal, plain lines after five seconds and then about every 30 keep logs readable.
    A bar that is opened inside another one goes away when it ends.

    Args:
        description: what is being done.
        total: number of steps, or None if unknown.
    """
    global _display
    if _display is not None:
        inner = Bar(_display, description, total)
        try:
            yield inner
        finally:
            inner.remove()
        return
    with _new_display() as _display:
        try:
            yield Bar(_display, description, total)
        finally:
            _display = None


def track(iterable: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """The items of an iterable, with a :func:`bar`; ``total`` defaults to its length, if it has one."""
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    with bar(description, total) as progress:
        for item in iterable:
            yield item
            progress.advance()


def _new_display() -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        # isatty, not rich's is_terminal: that one is also true of a file if FORCE_COLOR is set, as CI systems do.
        disable=not sys.stderr.isatty(),
        redirect_stdout=sys.stdout.isatty(),
    )


def clock(seconds: float) -> str:
    """A time as ``1:23:45``; a question mark for what is none, or longer than anybody waits."""
    try:
        return str(timedelta(seconds=round(seconds)))
    except (OverflowError, ValueError):  # infinite or too long; not a number
        return "?"
