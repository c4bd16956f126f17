"""What makes a run the run that it is, and so what results and folders are called and known by."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from star.common.shipped import MINI_BASE, MINI_PICKSCORE
from star.config.compose import of_scale
from star.config.schema import Config, get, to_dict
from star.method.arms import ARMS

DRAWING = ("steps", "guidance", "seed")
"""The settings of an evaluation that change its images, rather than their number."""

ARITHMETIC = 2
"""Counts the changes of this code by which the same settings came to give other digits. 2: groups that share their first
noise share its step, sampling folds adapters into the weights, AdamW is fused, frozen layers go through oneDNN where it is
faster; and "photo" is no core word of PickScore's any more."""

THRIFT = (
    "model.gradient_checkpointing",
    "model.offload",
    "model.decode_batch",
    "train.checkpoint_every",
    "train.collapse_epochs",
    "train.keep",
    "train.ratio_tolerance",
)
"""Settings that change where things are, how often they are computed, kept or checked, and when a run is given up, but not
what is computed."""

LATER = {"method.clip": "ratio", "relevance.columns_count": "as_attended", "model.kind": None, "task.prompts": None}
"""Settings that came after results had been made, with the value that changes nothing: at that value they are left out of the
identity, so that older results still match."""

SMALL_CLIP = ("pickscore",)
"""The tasks whose engine ``mini`` is the small CLIP, which goes by what is in it."""

OF_UPDATES, OF_MAPS = ("reduction", "steps", "clip", "clip_range", "weighted_kl"), ("cap", "mix", "exponent", "normalise")
"""The settings of a method, less its name and arm."""

UNTRAINED = ("name", "kind", "path", "resolution", "text_length", "dtype")
"""The settings of a model that matter before it is trained."""


def label(config: Config, method: str) -> str:
    """A method's name in results: with the base model and the variant, where they are not the scale's own.

    The base has no variant, unless that evaluates in another way.
    """
    shared = method == "base" and not evaluation_changes(config)
    return method + _suffix(config.model.name, None if shared else config.variant)


def evaluation_changes(config: Config) -> dict[str, Any]:
    """How images are drawn for the evaluation, where that is not the scale's own way: ``{"guidance": 1.0}``."""
    own = of_scale(config.scale).evaluation
    return {name: value for name in DRAWING if (value := getattr(config.evaluation, name)) != getattr(own, name)}


def identity(config: Config, measured: str | None = None) -> dict:
    """What makes a run the run that it is: all settings but its place, its tracker, and what only saves memory or disk.

    Weights that ship with this package go by what is in them, since they change.

    Args:
        measured: the task of an evaluation of the run; None for its training alone, which no setting of evaluations and no
            evaluator changes but those that give rewards.
    """
    outside = {"run", "tracker"} if measured else {"run", "tracker", "evaluation"}
    known = {name: value for name, value in to_dict(config).items() if name not in outside}
    del known["model"]["shard"]
    del known["train"]["checkpoint_minutes"]
    del known["model"]["kernels"]  # a run that was begun with some goes on with them, see star.training.machine
    own = of_scale(config.scale)  # whatever these settings are, they count as the scale's own
    for name in THRIFT:
        group, _, key = name.partition(".")
        known[group][key] = get(own, name)
    for name, neutral in LATER.items():
        group, _, key = name.partition(".")
        if known[group][key] == neutral:
            del known[group][key]
    known["model"]["path"] = config.model.path or MINI_BASE.identity
    known["arithmetic"] = ARITHMETIC
    used = {config.task.name, measured, *config.rewards.others}
    known["evaluators"] = {name: engine for name, engine in config.evaluators.items() if name in used}
    for name in (*SMALL_CLIP, *([config.task.name] if config.task.prompts else [])):
        if known["evaluators"].get(name) == "mini":
            known["evaluators"][name] = MINI_PICKSCORE.identity
    return known


def terms(config: Config) -> str:
    """What trainings must have in common to be compared: ``HASH``, or ``HASH/MAPS`` of an arm that makes maps in another way
    than the scale does.

    HASH is of all that training depends on but the seed, the relevance and the method, and of what of the method is neither
    the arm's nor the scale's: another clip, other weights of steps. MAPS matters between two arms that have maps.
    """
    shared = {name: value for name, value in identity(config).items() if name not in ("method", "relevance", "seed")}
    own, method = of_scale(config.scale), config.method
    same = (arm for arm in ARMS.values() if (arm.map, arm.ratio, arm.steps) == (method.arm, method.reduction, method.steps))
    arm = ARMS.get(method.name) or next(same, ARMS["star"])
    usual = replace(own.method, reduction=arm.ratio, steps=arm.steps)
    if departures := {name: getattr(method, name) for name in OF_UPDATES if getattr(method, name) != getattr(usual, name)}:
        shared["method"] = departures
    if method.arm == "uniform":
        return config_hash(shared)
    maps = {name: getattr(method, name) for name in OF_MAPS if getattr(method, name) != getattr(usual, name)}
    looks, usually = (to_dict(one)["relevance"] for one in (config, own))
    maps |= {f"relevance.{name}": value for name, value in looks.items() if value != usually[name]}
    return f"{config_hash(shared)}/{config_hash(maps)}" if maps else config_hash(shared)


def base_identity(config: Config) -> dict:
    """What an evaluation of the untrained model depends on."""
    known = identity(config, config.task.name)
    known["evaluators"] = {name: engine for name, engine in known["evaluators"].items() if name == config.task.name}
    model = {name: known["model"][name] for name in UNTRAINED if name in known["model"]}
    evaluation = {name: known["evaluation"][name] for name in (*DRAWING, "images")}
    return {name: known[name] for name in ("task", "scale", "evaluators", "arithmetic")} | {
        "model": model,
        "evaluation": evaluation,
    }


def run_folder(config: Config) -> Path:
    """Where a run is kept unless its settings say another place. Other trainings have other folders; another way to evaluate
    the same training has not."""
    name = label(config, config.method.name)
    return Path("runs", config.scale, config.task.name, name, f"seed{config.seed}-{config_hash(identity(config))[:8]}")


def base_folder(config: Config) -> Path:
    """Where an evaluation of the untrained model is kept."""
    return Path("runs", config.scale, config.task.name, label(config, "base"))


def other_tasks(config: Config) -> list[str]:
    """The tasks beside its own that a trained checkpoint is measured on: what it lost there must show."""
    return sorted(set(config.evaluators) - {config.task.name}) if config.evaluation.cross_images else []


def config_hash(config: Mapping[str, Any]) -> str:
    """First 12 hexadecimal digits of the sha256 of a configuration; independent of the order of its keys.

    Raises:
        ValueError: the configuration holds something that JSON has no form for.
    """
    try:
        text = json.dumps(config, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except TypeError as error:
        raise ValueError(f"a configuration must be plain data: {error}") from None
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _suffix(*names: str | None) -> str:
    """``+cfg+fast``: what changes of a method are called behind its name; nothing for None."""
    return "".join(f"+{name}" for name in names if name)
