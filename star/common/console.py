"""Output for people, in which names are what they are: no brackets are taken for markup, and no ``:word:`` for a picture."""

from typing import Any

from rich.console import Console


def console(**options: Any) -> Console:
    """A console of rich for texts with names of files and methods in them; ``options`` are its other ones."""
    return Console(markup=False, emoji=False, highlight=False, **options)


def console_for_tables() -> Console:
    """A :func:`console` that never cuts a number short: a log file has no width of its own."""
    screen = console()
    return screen if screen.is_terminal else console(width=160)
