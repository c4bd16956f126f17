"""Output for people that shows names as they are: brackets are not read as markup, nor ``:word:`` as an emoji."""

import errno
import os
import select
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from rich.console import Console
from rich.table import Column, Table

UNREAD = 141
"""Exit code of a process whose output nobody reads any more, as shells give it after SIGPIPE; 1 has other meanings."""


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # rich would end the process with exit code 1


def console(**options: Any) -> Console:
    """A rich console for texts with names of files and methods in them; ``options`` are its other arguments."""
    return _Console(markup=False, emoji=False, highlight=False, **options)


def console_for_tables() -> Console:
    """A :func:`console` that never truncates a number: a log file has no width of its own."""
    screen = console()
    return screen if screen.is_terminal else console(width=1000)  # a table is as wide as what is in it


def table(title: str, columns: Iterable[str]) -> Table:
    """A rich table whose cells wrap where there is no room, so that nothing is lost."""
    return Table(*(Column(name, overflow="fold") for name in columns), title=title, title_justify="left")


def print_table(title: str, columns: Iterable[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a :func:`table` of these rows."""
    drawn = table("", columns)
    for row in rows:
        drawn.add_row(*row)
    screen = console_for_tables()
    screen.print(title, style="italic", soft_wrap=True)  # of a narrow table rich would break it over several lines
    screen.print(drawn)


def tell(line: str) -> None:
    """Print a caution to standard error, and go on."""
    log(f"star: caution: {line}")


def note(line: str) -> None:
    """Print to standard error what is under way; :mod:`star.matrix.commands` never takes it for the reason of a failure."""
    log(f"star: note: {line}")


def log(line: str) -> None:
    """Print a line to standard error, which may be a file on a full disk: its loss is no reason to stop."""
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise


def unread(*streams: TextIO) -> bool:
    """Whether one of the streams is a pipe whose reader has gone, as after ``| head``; False where the system cannot tell."""
    if not hasattr(select, "poll"):
        return False
    poll = select.poll()
    for stream in streams:
        poll.register(stream, 0)  # errors are always reported, without being asked for
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


@contextmanager
def written_out() -> Iterator[None]:
    """Inside, something is printed; standard output is flushed at the end.

    Raises:
        OSError: nobody reads the output any more, or there is no room for it.
    """
    try:
        yield
    except SystemExit:  # how Typer ends; an error is reported for its own reason
        sys.stdout.flush()
        raise
    sys.stdout.flush()


def let_go(*streams: TextIO) -> None:
    """Discard what streams still hold but cannot write: Python would try again at exit, and change the exit code."""
    for stream in streams:
        try:
            stream.flush()
        except OSError:
            with suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), stream.fileno())
