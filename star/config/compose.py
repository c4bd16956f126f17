"""Composing the settings of a run: the YAML files of this package, the table of arms, and the words of a command.

A run is ``task=... method=... scale=...`` (one small file each) plus overrides such as ``train.epochs=5``. Files and
overrides are checked against the dataclasses of :mod:`star.config.schema`, so a wrong key or value is one clear line.
"""

import difflib
import json
import os
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import fields, is_dataclass
from functools import cache, lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_module
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException
from yaml import YAMLError

from star.common.errors import UserError, first_line
from star.common.plugins import is_path
from star.config.schema import Config
from star.method.arms import ARMS

FILES = "star.config.files"
GROUPS = ("task", "method", "scale", "model", "variant", "preset")
OPTIONAL = ("model", "variant", "preset")
"""The groups from which nothing need be chosen: ``variant=null``."""

PATHS = ("run", "model.path")
"""Settings whose values are plain text, whatever characters they contain, and in which ``~`` is the home folder."""

NAMED = (dict[str, float], dict[str, str])
"""The types of settings whose parts have names that a user chooses."""

SWITCHES = (bool, bool | None)
"""The types of settings that are on or off. Hydra would take any number but 0 for on."""

REWARDS = "rewards.others."
"""Prefix of the settings that may end in a reward's import path, whose dots Hydra would take for levels of settings."""

ConfigStore.instance().store("schema", Config)
for _arm in ARMS.values():
    _node = {"name": _arm.name, "arm": _arm.map, "reduction": _arm.ratio, "steps": _arm.steps, "clip": _arm.clip}
    ConfigStore.instance().store(_arm.name, _node, group="method")


def compose(overrides: Sequence[str]) -> Config:
    """The settings that the words of a command give, with the right types; :func:`star.config.load` also checks their values.

    Args:
        overrides: ``key=value`` words in Hydra's grammar.

    Raises:
        UserError: an unknown file or key, or a value of the wrong type; the line names it and what is allowed.
    """
    for word in overrides:
        key, equals, value = word.partition("=")
        if not equals:
            raise UserError(f"{word!r} is no setting; write key=value, e.g. task=geneval or train.epochs=5")
        if not value.strip(" '\""):
            raise UserError(f"{key}= has no value; write one, or leave it out")
    rewards, overrides = _own_rewards(_without_null(list(overrides)))
    paths, overrides = _paths(overrides)
    for word in overrides:
        group, _, value = word.partition("=")
        if group == "seed" and (".." in value or "," in value):
            raise UserError(f"{word}: a training has one seed; star matrix takes several, as {word}")
        if "${" in value or not word.isprintable():
            raise UserError(f"{word!r}: write the value itself, without ${{...}} or line breaks")
        if group not in GROUPS:
            if _kind(group) in SWITCHES and value.lstrip("-").isdecimal() and value not in ("0", "1"):
                raise UserError(f"{word} must be true or false")
        elif value not in options(group):
            several = value == "all" or "," in value
            hint = f"; star matrix takes several, as {word}" if several and group in ("task", "method") else ""
            raise UserError(f"{no_option(group, value)}{hint}")
    try:
        config: Any = OmegaConf.to_object(_composed(overrides))
    except OverrideParseException as error:
        raise UserError(
            f"{error.override!r} cannot be read; put a value with signs in it in quotes, as \"key='value'\""
        ) from None
    except (HydraException, OmegaConfBaseException) as error:
        cause = error.__cause__ or error
        if isinstance(cause, ConfigAttributeError | ConfigKeyError):
            raise UserError(f"{cause.full_key} is not set yet; write +{cause.full_key}=... to add it") from None
        if "ListConfig" in (told := _one_line(cause)):  # a word that no user has heard
            told = f"{getattr(cause, 'full_key', 'it')} is a list; write 'KEY=[A,B]', in quotes, which some shells need"
        raise UserError(f"settings: {told}") from None
    config.rewards.others |= rewards
    config.run = paths.get("run", config.run)
    config.model.path = paths.get("model.path", config.model.path)
    return config


def _composed(words: Sequence[str]) -> DictConfig:
    """The settings that Hydra composes from words.

    Choosing files takes it a tenth of a second, and a matrix has hundreds of settings of few choices: so its second step,
    values, is taken here, by its own functions, after a first that is remembered.
    """
    chosen = tuple(word for word in words if word.partition("=")[0] in GROUPS)
    values = OverridesParser.create().parse_overrides([word for word in words if word not in chosen])
    ConfigLoaderImpl.validate_sweep_overrides_legal(values, RunMode.RUN, from_shell=False)
    config = deepcopy(_chosen(chosen))
    ConfigLoaderImpl._apply_overrides_to_config(values, config)
    return config


@lru_cache(256)
def _chosen(words: tuple[str, ...]) -> DictConfig:
    with initialize_config_module(FILES, version_base=None):
        return hydra_compose("config", overrides=list(words))


def read_config(file: Path) -> Config:
    """The settings that a run folder was made with, from its ``config.yaml``.

    Raises:
        UserError: they cannot be read, or are not those of this version.
    """
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.load(file)))  # type: ignore[return-value]
    except (OSError, ValueError, OmegaConfBaseException, YAMLError) as error:
        raise UserError(f"{file} cannot be read by this version: {first_line(error)}") from None


def as_word(value: Any) -> str:
    """A setting's value as it is written on a command line."""
    if isinstance(value, list):
        return f"[{','.join(map(as_word, value))}]"
    return value if isinstance(value, str) else json.dumps(value)


@cache
def options(group: str) -> list[str]:
    """The choices of a group: the names of its files, or for ``method`` those of all arms."""
    if group == "method":
        return sorted(ARMS)
    return sorted(Path(file.name).stem for file in (resources.files(FILES) / group).iterdir() if file.name.endswith(".yaml"))


def no_option(group: str, value: str) -> str:
    """What is told of a choice that a group does not have; for a path, which would name a map, how that is chosen."""
    map_of_own = f"; a map of your own: method=star method.name=NAME method.arm={value}"
    hint = map_of_own if group == "method" and is_path(value) else ""
    return f"no {group} {value!r}; there are: {', '.join(options(group))}{hint}"


def _without_null(words: list[str]) -> list[str]:
    """The words without each ``variant=null`` and the choices before it that it revokes: Hydra has no word for none."""
    for group in OPTIONAL:
        last = max((place for place, word in enumerate(words) if word == f"{group}=null"), default=-1)
        words = [word for place, word in enumerate(words) if place > last or not word.startswith(f"{group}=")]
    return words


def _paths(words: list[str]) -> tuple[dict[str, Any], list[str]]:
    """The values of :data:`PATHS`, which Hydra's grammar would not take as plain text, and the words that are left for it."""
    paths: dict[str, Any] = {}
    left = []
    for word in words:
        key, _, value = word.partition("=")
        if key not in PATHS:
            left.append(word)
        elif value == "null":
            paths[key] = "" if key == "run" else None
        else:
            quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
            paths[key] = os.path.expanduser(value[1:-1] if quoted else value)
    return paths, left


def _own_rewards(words: list[str]) -> tuple[dict[str, float], list[str]]:
    """The weights of rewards that are named by an import path, and the words that are left for Hydra."""
    rewards, left = {}, []
    for word in words:
        key, _, weight = word.partition("=")
        key = key.lstrip("+")
        if not (key.startswith(REWARDS) and is_path(path := key.removeprefix(REWARDS))):
            left.append(word)
            continue
        try:
            rewards[path] = float(weight)
        except ValueError:
            raise UserError(f"{key}={weight} must be a number, the weight of the reward") from None
    return rewards, left


def _kind(key: str) -> Any:
    """The type of a setting, by its dotted name.

    Raises:
        UserError: the schema has no such name; the error names those that may be meant.
    """
    kind: Any = Config
    name = key.lstrip("+~")
    if name != key and name in (*GROUPS, *PATHS):
        raise UserError(f"{key} is no setting; write {name}=... without signs before it")
    path = name.split(".")
    for depth, part in enumerate(path):
        known = {f.name: f.type for f in fields(kind)} if is_dataclass(kind) else {}
        owner = ".".join(path[:depth])
        if is_dataclass(kind) and part not in known:
            has = f"{owner} has" if depth else "there are"
            raise UserError(f"{key} is no setting; {meant(name)}{has}: {', '.join(known)}")
        if not (is_dataclass(kind) or kind in NAMED):
            raise UserError(f"{key} is no setting; {owner} is one, and has no parts")
        kind = known.get(part)
    return kind


def meant(name: str) -> str:
    """``did you mean train.epochs? ``, if a setting has that name within its group, or nearly that name; else empty."""
    if name == "out":
        return "a run's folder is run=FOLDER, that of a page --out FOLDER; "
    known = [f"{group.name}.{f.name}" for group in fields(Config) if is_dataclass(group.type) for f in fields(group.type)]
    ends = [full for full in known if full.rpartition(".")[2] == name.rpartition(".")[2]]
    near = ends or difflib.get_close_matches(name, [*known, *GROUPS, *(f.name for f in fields(Config))], n=1)
    return f"did you mean {' or '.join(near)}? " if near else ""


@cache
def of_scale(name: str) -> Config:
    """The default settings of a scale, with nothing changed."""
    return compose([f"scale={name}"])


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    kept = [line for line in lines if not line.startswith(("full_key:", "object_type=", "reference_type="))]
    key = next((line.removeprefix("full_key:").strip() for line in lines if line.startswith("full_key:")), None)
    return (f"{key}: " if key else "") + " ".join(kept)
