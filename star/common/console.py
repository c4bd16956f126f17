"""Output for people, in which names are what they are: no brackets are taken for markup, and no ``:word:`` for a picture."""

import os
import select
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from rich.console import Console
from rich.table import Column, Table

UNREAD = 141
"""Exit code of a process whose output nobody reads any more; shells say so of one that SIGPIPE ended. 1 says other things."""


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # rich would end the process with exit code 1


def console(**options: Any) -> Console:
    """A console of rich for texts with names of files and methods in them; ``options`` are its other ones."""
    return _Console(markup=False, emoji=False, highlight=False, **options)


def console_for_tables() -> Console:
    """A :func:`console` that never cuts a number short: a log file has no width of its own."""
    screen = console()
    return screen if screen.is_terminal else console(width=1000)  # a table is as wide as what is in it


def table(title: str, columns: Iterable[str]) -> Table:
    """A table of rich whose cells, where there is no room, go on below and lose nothing."""
    return Table(*(Column(name, overflow="fold") for name in columns), title=title, title_justify="left")


def print_table(title: str, columns: Iterable[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a :func:`table` of these rows."""
    drawn = table(title, columns)
    for row in rows:
        drawn.add_row(*row)
    console_for_tables().print(drawn)


def tell(line: str) -> None:
    """Say on standard error what somebody should know of, and go on."""
    print(f"star: caution: {line}", file=sys.stderr)


def note(line: str) -> None:
    """Say on standard error what is under way; of a run that fails it is never the reason (:mod:`star.matrix.launchers`)."""
    print(f"star: note: {line}", file=sys.stderr)


def unread(*streams: TextIO) -> bool:
    """Whether a pipe behind one of the streams has lost its reader, as behind ``| head``; False where systems cannot tell."""
    if not hasattr(select, "poll"):
        return False
    poll = select.poll()
    for stream in streams:
        poll.register(stream, 0)  # errors are told without being asked for
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


@contextmanager
def written_out() -> Iterator[None]:
    """Inside, something is printed; after it all of that has left.

    Raises:
        OSError: nobody reads it any more, or there is no room for it.
    """
    try:
        yield
    except SystemExit:  # as Typer ends; an error has its own reason to tell
        sys.stdout.flush()
        raise
    sys.stdout.flush()


def let_go(*streams: TextIO) -> None:
    """Drop what streams still hold but cannot write: Python would try once more at its end, and change the exit code."""
    for stream in streams:
        try:
            stream.flush()
        except OSError:
            with suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), stream.fileno())
