"""The words of a command that are its own, ``NAME=VALUE`` beside the settings of a run."""

from collections.abc import Collection, Sequence

from star.common.errors import UserError


def own_words(words: Sequence[str], names: Collection[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """A command's own words, name -> value, where the last of a name counts; and the words that are left.

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
