"""The words ``NAME=VALUE`` that belong to a command itself, beside the settings of a run."""

import re
from collections.abc import Collection, Sequence

from star.common.errors import UserError, short

MOST_SEEDS = 10_000


def own_words(words: Sequence[str], names: Collection[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """A command's own words, name -> value, of which the last one for a name counts; and the remaining words.

    Raises:
        UserError: one of its own has no value.
    """
    own = {name: value for name, _, value in (word.partition("=") for word in words) if name in names}
    if empty := [name for name, value in own.items() if not value.strip()]:
        raise UserError(f"{empty[0]}= has no value; write one, or leave it out")
    return own, tuple(word for word in words if word.partition("=")[0] not in names)


def take_flag(words: Sequence[str], name: str) -> tuple[tuple[str, ...], bool]:
    """The words without ``name=true`` and ``name=false``, and whether the last of those is true.

    Raises:
        UserError: its value is something else.
    """
    own, rest = own_words(words, (name,))
    value = own.get(name, "false").lower()
    if value not in ("true", "false"):
        raise UserError(f"{name}={value} must be true or false")
    return rest, value == "true"


def seeds_of(word: str) -> list[int]:
    """The seeds of ``seed=0,7`` or ``seed=0..4``, each once.

    Raises:
        UserError: a part is neither a number nor a range, or its range is empty or too long.
    """
    seeds: dict[int, None] = {}
    for part in word.partition("=")[2].split(","):
        match = re.fullmatch(r"(\d{1,19})(?:\.\.(\d{1,19}))?", part)
        if not match:
            told = f"{short(word)}: {short(repr(part))} is no seed"
            raise UserError(f"{told}; write numbers from 0 on and ranges, e.g. seed=0,7 or seed=0..4")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise UserError(f"{word}: the range {part} is empty; write the smaller number first, e.g. seed=0..4")
        if last - first >= MOST_SEEDS:
            raise UserError(f"{word}: the range {part} has more than {MOST_SEEDS:,} seeds")
        seeds |= dict.fromkeys(range(first, last + 1))
    return list(seeds)
