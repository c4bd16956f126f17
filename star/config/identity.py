"""The identity of a run: what distinguishes it from other runs, and so how its results and folders are named."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from star.common.shipped import MINI_BASE, MINI_PICKSCORE
from star.config.compose import of_scale
from star.config.schema import Config, get
from star.method.arms import ARMS

DRAWING = ("steps", "guidance", "seed")
"""The settings of an evaluation that change its images, rather than their number."""

OF_OTHERS = ("every", "every_images", "images", "cross_images")
"""The settings of evaluations each of which matters to some alone: when training makes one, and how many images it draws."""

ARITHMETIC = 2
"""Number of this code's arithmetic, raised when the same settings come to give other digits. 2: rollouts that share their
first noise share the computation of the first step, sampling folds adapters into the weights, AdamW is fused, frozen layers
use oneDNN where it is faster; and "photo" is no longer a core word of PickScore."""

THRIFT = (
    "model.gradient_checkpointing",
    "model.offload",
    "model.decode_batch",
    "train.checkpoint_every",
    "train.collapse_epochs",
    "train.keep",
    "train.ratio_tolerance",
)
"""Settings that change how tensors are placed, batched or recomputed, how often a run is saved, or when it is given up, but
not what is computed."""

LATER = {"method.clip": "ratio", "relevance.columns_count": "as_attended", "model.kind": None, "task.prompts": None}
"""Settings that were added after results had been made, each with its neutral value: at that value it is left out of the
identity, so that older results still match."""

SMALL_CLIP = ("pickscore",)
"""The tasks whose engine ``mini`` is the small CLIP, which is identified by a digest of its weights."""

OF_UPDATES, OF_MAPS = ("reduction", "steps", "clip", "clip_range", "weighted_kl"), ("cap", "mix", "exponent", "normalise")
"""The settings of a method except its name and arm: those of the updates, and those of the maps."""

UNTRAINED = ("name", "kind", "path", "resolution", "text_length", "dtype")
"""The settings of a model that matter before it is trained."""


def label(config: Config, method: str) -> str:
    """A method's name in results, followed by the base model and the variant, where they are not the scale's own.

    The base is named without the variant, unless its evaluation draws images in another way than the scale's.
    """
    shared = method == "base" and not evaluation_changes(config)
    return method + _suffix(config.model.name, None if shared else config.variant)


def evaluation_changes(config: Config) -> dict[str, Any]:
    """The settings by which the evaluation draws images in another way than the scale's: ``{"guidance": 1.0}``."""
    own = of_scale(config.scale).evaluation
    return {name: value for name in DRAWING if (value := getattr(config.evaluation, name)) != getattr(own, name)}


def identity(config: Config, measured: str | None = None) -> dict:
    """What distinguishes a run from others: all settings but its folder, its tracker, and what only saves memory or disk.

    Weights that ship with this package are identified by a digest, since they may change.

    Args:
        measured: the task of an evaluation of the run; None for its training alone, which depends on no setting of evaluations
            and on no evaluator but those that give its rewards.
    """
    outside = {"run", "tracker"} if measured else {"run", "tracker", "evaluation"}
    known = {name: value for name, value in asdict(config).items() if name not in outside}
    del known["model"]["shard"]
    del known["train"]["checkpoint_minutes"]
    del known["model"]["kernels"]  # a run keeps the ones that it began with, see star.training.machine
    own = of_scale(config.scale)  # whose values stand in for those of this run
    for name in THRIFT:
        group, _, key = name.partition(".")
        known[group][key] = get(own, name)
    if measured:
        counted = "images" if measured == config.task.name else "cross_images"
        known["evaluation"] |= {name: getattr(own.evaluation, name) for name in OF_OTHERS if name != counted}
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
    """What trainings must share to be compared: ``HASH``, or ``HASH/MAPS`` where maps are not made in the scale's way.

    HASH is of all that training depends on except the seed, the relevance and the method; of the method it covers the settings
    of updates that are neither the arm's nor the scale's: another clip, other weights of steps. MAPS is of the settings of
    maps that are not the scale's. It matters only between two arms that have maps.
    """
    shared = {name: value for name, value in identity(config).items() if name not in ("method", "relevance", "seed")}
    own, method = of_scale(config.scale), config.method
    same = [arm for arm in ARMS.values() if (arm.map, arm.ratio, arm.steps) == (method.arm, method.reduction, method.steps)]
    arm = ARMS.get(method.name) or min(same, key=lambda arm: arm.clip != method.clip, default=ARMS["star"])
    usual = replace(own.method, reduction=arm.ratio, steps=arm.steps, clip=arm.clip)
    if departures := {name: getattr(method, name) for name in OF_UPDATES if getattr(method, name) != getattr(usual, name)}:
        shared["method"] = departures
    if method.arm == "uniform":
        return config_hash(shared)
    maps = {name: getattr(method, name) for name in OF_MAPS if getattr(method, name) != getattr(usual, name)}
    looks, usually = (asdict(one)["relevance"] for one in (config, own))
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
    """Where a run is kept unless its settings name a folder: one for each training, however that is evaluated."""
    name = label(config, config.method.name)
    return Path("runs", config.scale, config.task.name, name, f"seed{config.seed}-{config_hash(identity(config))[:8]}")


def base_folder(config: Config) -> Path:
    """Where an evaluation of the untrained model is kept."""
    return Path("runs", config.scale, config.task.name, label(config, "base"))


def other_tasks(config: Config) -> list[str]:
    """The other tasks that a trained checkpoint is scored on, so that what it lost there shows."""
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
    """The changes of a method as they follow its name, like ``+sd35_large+fast``; nothing for None."""
    return "".join(f"+{name}" for name in names if name)
