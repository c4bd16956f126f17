"""Tables in Markdown."""

from collections.abc import Sequence


def table(head: Sequence[str], rows: Sequence[Sequence[str]], numbers: int = 1) -> list[str]:
    """The lines of a table.

    Args:
        head: of each column.
        rows: as many cells each.
        numbers: columns from here on are set like numbers, to the right.
    """
    marks = ["---" if column < numbers else "--:" for column in range(len(head))]
    first, *others = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in (head, *rows)]
    return [first, f"|{'|'.join(marks)}|", *others]
