"""Tables in Markdown."""

import re
from collections.abc import Sequence

MARKS = re.compile(r"[\\`*<>$]|\](?=\()")
EDGES = re.compile(r"(?<![^\W_])_|_(?![^\W_])")
"""Underscores that would begin or end emphasis; within words they mean nothing."""


def escape(text: str) -> str:
    """Escape a name or other plain text, so that Markdown shows it as it is."""
    return EDGES.sub(r"\\_", MARKS.sub(r"\\\g<0>", text))


def table(head: Sequence[str], rows: Sequence[Sequence[str]], numbers: int = 1) -> list[str]:
    """The lines of a table.

    Args:
        head: the heading of each column.
        rows: each with as many cells.
        numbers: columns from this index on are right-aligned, as numbers are.
    """
    marks = ["---" if column < numbers else "--:" for column in range(len(head))]
    first, *others = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in (head, *rows)]
    return [first, f"|{'|'.join(marks)}|", *others]
