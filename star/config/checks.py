"""What types and ranges cannot say: combinations of settings that are refused, and those that are reported to fail."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, is_dataclass
from functools import cache
from math import isfinite
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from star.common.errors import UserError
from star.common.plugins import is_path
from star.config.compose import compose, options
from star.config.schema import BELOW_2_63, Config, Rule, SamplingConfig, TrainConfig, flat
from star.method.arms import ARMS

STABLE_GROUP = 12


def check(config: Config) -> None:
    """Check ranges and combinations of settings, which types cannot express.

    Raises:
        UserError: names the setting, its value and what is allowed.
    """
    _check_values(config)
    _check_sampling(config.sampling, config.train)
    _check_batches(config.train)
    _check_method(config)
    if config.model.shard and config.model.parameters == "full":
        raise UserError(
            "model.shard=true shares out the frozen weights, and model.parameters=full leaves none; use model.parameters=lora "
            "or model.shard=false"
        )
    if config.model.kind and not config.model.name:
        raise UserError(f"model.kind={config.model.kind}: results need a name for the model, e.g. model.name=flux")
    # A folder may be a copy of the scale's own model, so it keeps that one's name in results.
    if config.model.path and not config.model.name and (choice := _models().get(config.model.path)):
        raise UserError(
            f"model.path={config.model.path} is not the scale's own model, and results need its name; write {choice}"
        )
    if not config.task.prompts and config.task.name not in options("task"):
        raise UserError(
            f"task.name={config.task.name}: there is no such task; there are: {', '.join(options('task'))}, and prompts of "
            "your own by task.prompts=my_module:MyTask"
        )
    if config.task.prompts and config.task.name.lower() in options("task"):
        raise UserError(f"task.prompts={config.task.prompts}: results need another name for this task, e.g. task.name=own")
    for name in config.evaluators:
        if name not in (*options("task"), config.task.name):
            raise UserError(f"evaluators.{name}: there is no such task; there are: {', '.join(options('task'))}")
    if config.task.name not in config.evaluators:
        name, known = config.task.name, ", ".join(config.evaluators)
        raise UserError(
            f"task={name}: scale={config.scale} has no evaluator for it, only for {known}; say what judges it, "
            f"+evaluators.{name}=ENGINE, or =my_module:MyReward for a class of your own"
        )
    for name in config.rewards.others:
        if name == config.task.name or not (name in config.evaluators or is_path(name)):
            known = ", ".join(sorted(set(config.evaluators) - {config.task.name}))
            raise UserError(
                f"rewards.others={name}: not another task; there are: {known}, and your own as my_package.my_module:MyReward"
            )


@cache
def _models() -> dict[str, str]:
    """The path of each model that is no scale's own, and the word that chooses it with its name."""
    words = [f"model={name}" for name in options("model")]
    return {path: word for word in words if (path := compose([word]).model.path)}


LARGEST = 1e38
IN_LISTS = {int: "whole numbers", float: "numbers", str: "words"}


def _check_values(config: Config) -> None:
    """Check that lists hold what they should, that numbers are finite, and that values obey the rules beside their types."""
    every = list(_settings(config))
    for name, value, kind, _ in every:
        if get_origin(kind) is list and any(type(one) not in get_args(kind) for one in value):  # nobody has looked inside yet
            raise UserError(f"{name}={value} must be a list of {IN_LISTS[get_args(kind)[0]]}")
    for name, value in _numbers(config):
        if isinstance(value, int) and not BELOW_2_63.allows(value):
            raise UserError(f"{name}={value} {BELOW_2_63.text}")
        if not isfinite(value):
            raise UserError(f"{name}={value} must be a finite number")
        if isinstance(value, float) and abs(value) > LARGEST:
            raise UserError(f"{name}={value} must be at most {LARGEST:g}, which float32 holds")
    for name, value, _, rules in every:
        for rule in rules:
            if not rule.allows(value):
                raise UserError(f"{name}={value} {rule.text}")


def _settings(settings: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any, Sequence[Rule]]]:
    """Every setting: its dotted name, its value, its type and the rules beside that."""
    for name, hint in get_type_hints(type(settings), include_extras=True).items():
        value = getattr(settings, name)
        if is_dataclass(value):
            yield from _settings(value, f"{prefix}{name}.")
        else:
            kind, *rules = get_args(hint) if get_origin(hint) is Annotated else (hint,)
            yield f"{prefix}{name}", value, kind, rules


def _check_sampling(sampling: SamplingConfig, train: TrainConfig) -> None:
    if sampling.kind == "cps" and not sampling.noise_level <= 1:
        raise UserError(f"sampling.noise_level={sampling.noise_level} must be at most 1 for sampling.kind=cps")
    if sampling.kind == "cps" and train.beta and train.kl == "flow_grpo":
        raise UserError("train.kl=flow_grpo leaves out a time step that cps transitions do not have; use train.kl=paper")
    if sampling.kind == "cps" and train.guard:
        raise UserError("train.guard normalises log-ratios of densities, and cps transitions have none; use sampling.kind=sde")
    if not sampling.window and sampling.steps < 2:
        raise UserError(f"sampling.steps={sampling.steps} must be at least 2, because the last one is never trained")
    if sampling.window:
        first, last = sampling.window_range
        if not 0 <= first <= last - sampling.window or last > sampling.steps - 1:
            raise UserError(
                f"sampling.window={sampling.window} must fit into sampling.window_range=[{first}, {last}), which must "
                f"lie within steps 0 to {sampling.steps - 2} (the last step is never trained)"
            )


def _check_method(config: Config) -> None:
    method, sampling, guard = config.method, config.sampling, config.train.guard
    if method.clip == "kl" and (sampling.kind == "cps" or guard):
        raise UserError(
            "method.clip=kl limits log-ratios of sde steps as they are; use sampling.kind=sde and train.guard=false"
        )
    if method.steps == "equal" and guard:
        raise UserError("method.steps=equal divides by the size of the scores, which train.guard changes; leave one out")
    if method.normalise == "step" and method.arm == "temporal":
        raise UserError("method.normalise=step leaves nothing of method.arm=temporal, which differs between steps alone")
    if method.normalise == "step" and method.arm == "star_random":
        raise UserError(
            "method.normalise=step would scale the values that method.arm=star_random has from other steps, so that they are "
            "no longer STAR's; use method.normalise=rollout, or another control"
        )
    arm = ARMS.get(named := re.split(r"[@+]", method.name)[0].lower())  # not all file systems tell Star from star
    if arm and arm.map != method.arm:
        raise UserError(
            f"method.name={method.name}: in results {named} is the arm with the map {arm.map}, not {method.arm}; choose "
            "another name"
        )


def _check_batches(train: TrainConfig) -> None:
    if train.group_size < 2:
        raise UserError(f"train.group_size={train.group_size}: advantages compare rollouts of a prompt, so at least 2")
    most = max(1, min(train.micro_batch, train.rollouts // max(1, train.updates_per_epoch)))
    fits = f"e.g. train.micro_batch={next(size for size in range(most, 0, -1) if train.rollouts % size == 0)}"
    if train.rollouts % train.micro_batch:
        raise UserError(
            f"train.micro_batch={train.micro_batch} must divide the {train.rollouts:,} rollouts of an epoch; {fits}"
        )
    if train.micro_batches < train.updates_per_epoch:
        few = f"{train.micro_batches} micro-batch{'es' * (train.micro_batches > 1)}"
        raise UserError(
            f"train.updates_per_epoch={train.updates_per_epoch}, but an epoch has only {few}; lower train.micro_batch, {fits}"
        )


def cautions(config: Config) -> list[str]:
    """A line for each choice that is allowed but reported to fail, with the report, or that cannot have any effect."""
    sampling, train = config.sampling, config.train
    found = []
    if sampling.window and sampling.guidance != 1:
        found.append(
            f"sampling.window={sampling.window} with sampling.guidance={sampling.guidance:g}: Flow-GRPO-Fast with guidance is "
            "reported to collapse within a few epochs (yifan123/flow_grpo #224); variant=fast has no guidance"
        )
    if sampling.window and train.guard:
        found.append("train.guard with sampling.window is reported to collapse on OCR (yifan123/flow_grpo #192)")
    if train.group_size <= STABLE_GROUP:
        found.append(
            f"train.group_size={train.group_size}: groups of 12 and 6 collapsed in Flow-GRPO's ablation (arXiv 2505.05470), "
            "24 was stable"
        )
    updates = train.epochs * train.updates_per_epoch
    if updates < train.ema_every - 1:  # the number of the first update that it takes in
        found.append(
            f"{updates} updates are too few for train.ema_every={train.ema_every}: the average of the weights, which is "
            "judged, takes in none of them, so the scores are the untrained model's; train.ema_every=1 takes in each"
        )
    return found


def ways_to_save_memory(config: Config, processes: int) -> list[str]:
    """Changes to these settings that save GPU memory; only several processes can share out the weights."""
    ways = ["model.gradient_checkpointing=true"] * (not config.model.gradient_checkpointing)
    ways += ["model.offload=true"] * (not config.model.offload)
    ways += ["model.shard=true"] * (processes > 1 and config.model.parameters == "lora" and not config.model.shard)
    return [*ways, f"train.micro_batch below {config.train.micro_batch}"]


def _numbers(config: Config) -> Iterator[tuple[str, float]]:
    """Every number in the settings, also within lists, with the dotted name of its setting."""
    for name, value in flat(asdict(config)).items():
        for one in value if isinstance(value, list) else [value]:
            if type(one) in (int, float):
                yield name, one
