"""All settings with their values and their meanings, which come from the docstrings of :mod:`star.config.schema`."""

import inspect
import re
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple

from star.common.errors import UserError
from star.config.compose import as_word, meant, options
from star.config.schema import Config

MARKUP = re.compile(r":\w+:`([^`]+)`|``([^`]+)``")


class Setting(NamedTuple):
    """A setting's dotted name, its value as on a command line, and its meaning, empty if the next setting's applies to it."""

    name: str
    value: str
    text: str


class Group(NamedTuple):
    """Settings that belong together, under a title."""

    title: str
    settings: list[Setting]


def described(config: Config, names: Sequence[str] = ()) -> list[Group]:
    """The settings in the order of the schema, group by group: those without a group first.

    Args:
        config: the settings.
        names: the groups or settings to give; all if empty.

    Raises:
        UserError: a name is neither a setting's nor a group's.
    """
    groups = [Group(_title(config), list(_settings(config, "")))]
    for name, part in ((f.name, getattr(config, f.name)) for f in fields(config)):
        if is_dataclass(part):
            groups.append(Group(f"{name}: {_title(part)}", list(_settings(part, f"{name}."))))
    known = [one.name for group in groups for one in group.settings]
    for name in names:
        if not any(_within(one, name) for one in known):
            raise UserError(f"{name} is no setting and no group of settings; {_chosen(name)}star settings shows all")
    if names:
        groups = [Group(title, [s for s in own if any(_within(s.name, name) for name in names)]) for title, own in groups]
    return [group for group in groups if group.settings]


def _settings(part: Any, prefix: str) -> Iterator[Setting]:
    """The settings of a dataclass that are no groups; a dict gives one per key, of which the last has the text."""
    texts = _texts(type(part))
    for name, value in ((f.name, getattr(part, f.name)) for f in fields(part)):
        if isinstance(value, dict) and value:
            *others, last = value
            yield from (Setting(f"{prefix}{name}.{key}", as_word(value[key]), "") for key in others)
            yield Setting(f"{prefix}{name}.{last}", as_word(value[last]), texts[name])
        elif not is_dataclass(value):
            yield Setting(prefix + name, as_word(value), texts[name])


def _chosen(name: str) -> str:
    """What a name that stands for a choice of settings offers, and else the setting that may be meant."""
    if name == "preset":
        return f"it is a choice: star settings scale=paper preset=NAME shows what it gives; {', '.join(options(name))}; "
    if name.partition(".")[0] == "launcher":
        return f"it is a choice of star matrix, {' or '.join(options('launcher'))}: star matrix --help; "
    return meant(name)


def _within(setting: str, name: str) -> bool:
    return f"{setting}.".startswith(f"{name}.")


def _title(part: Any) -> str:
    return (inspect.getdoc(type(part)) or "").partition("\n")[0].rstrip(".")


def _texts(kind: type) -> dict[str, str]:
    """What the docstring of a dataclass says of each attribute: ``name, other: text``, and further lines indented deeper."""
    texts: dict[str, str] = {}
    names: list[str] = []
    for line in (inspect.getdoc(kind) or "").partition("Attributes:\n")[2].splitlines():
        if not line.startswith("        "):
            head, _, line = line.strip().partition(": ")
            names = head.split(", ")
        texts |= {name: f"{texts.get(name, '')} {line.strip()}".strip() for name in names}
    return {name: MARKUP.sub(r"\1\2", text) for name, text in texts.items()}
