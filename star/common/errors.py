"""The errors that end a command with one line instead of a traceback."""


class UserError(Exception):
    """Bad input. The message is one line: what is wrong, where, and what to do; the command line exits with code 2."""


class RunStopped(Exception):
    """A run that must not go on, e.g. because it collapsed. The message gives the reason; the exit code is 1."""


class Interrupted(Exception):
    """Somebody ended a command; the message says how to go on. Typer would not show a KeyboardInterrupt's own message."""


DIED = "another process of this run has died"
"""How the message of a :class:`RunStopped` begins in a process that waited for another: it is not the one at fault."""

SHOWN = 120


def short(text: str) -> str:
    """Text from a user's file for a message, cut if it is long."""
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def first_line(error: BaseException) -> str:
    """The first line of an error's message that is not empty, or the name of its kind if there is none."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def one_line(error: object) -> str:
    """The message of an error, without its line breaks."""
    return " ".join(str(error).split())
