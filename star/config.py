"""The settings of a run: what the YAML files in ``star/conf`` and ``baselines`` must satisfy, and how they are composed.

A run is ``task=... method=... scale=...`` (one small file each) plus overrides such as ``train.epochs=5``. Files and
overrides are checked against the dataclasses here, so a wrong key or value is one clear line.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from importlib import resources
from math import isfinite
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from star.errors import UserError
from star.files import weights_digest


@dataclass
class TaskConfig:
    """What is rewarded. ``beta`` is the KL coefficient that Flow-GRPO published for the task."""

    name: str
    beta: float


@dataclass
class MethodConfig:
    """How a rollout's advantage is allocated.

    Attributes:
        arm: one of ``star.allocation.ARMS``.
        reduction: one ratio per ``image`` or per latent ``position``.
        clip_range: explicit, or null for the scale's (per image) made comparable for the reduction.
        cap: largest weight; null for none.
        mix: share of the map, the rest is uniform.
        exponent: power of the relevance before anything else.
        weighted_kl: whether the KL penalty is weighted like the advantage.
    """

    name: str
    arm: str
    reduction: str = "position"
    clip_range: float | None = None
    cap: float | None = None
    mix: float = 1.0
    exponent: float = 1.0
    weighted_kl: bool = False


@dataclass
class ModelConfig:
    """The base model.

    Attributes:
        path: a diffusers folder or hub name; null for the mini base that ships with the package.
        resolution: side of the square images in pixels.
        text_length: T5 columns (``max_sequence_length`` of the pipeline).
        dtype: of frozen weights and activations: float32, float16 or bfloat16. Trained weights are always float32.
        parameters: ``lora`` or ``full``.
        lora_rank, lora_alpha: of the adapters.
        lora_targets: module names within a joint block.
        gradient_checkpointing: trade a second forward for memory.
        name: of a base model that is not the scale's own; it becomes part of the method's name in results.
        offload: keep text encoders and autoencoder in main memory, and on the GPU only while they work.
        shard: each process keeps only its part of the transformer's frozen weights (FSDP2); for ``lora``. It changes where
            weights are and not what is computed, so it is no part of a run's identity.
    """

    path: str | None
    resolution: int
    text_length: int
    dtype: str
    parameters: str
    lora_rank: int
    lora_alpha: int
    lora_targets: list[str]
    gradient_checkpointing: bool
    offload: bool
    name: str | None = None
    shard: bool = False


@dataclass
class SamplingConfig:
    """How rollouts are drawn.

    Attributes:
        steps: denoising steps.
        kind: ``sde`` or ``cps`` for the stochastic steps.
        noise_level: of the stochastic steps.
        guidance: classifier-free guidance scale; 1 for none.
        window: number of consecutive stochastic steps, which are the trained ones; 0 makes all steps stochastic and
            trains all but the last (Flow-GRPO). With a window the other steps are deterministic (Flow-GRPO-Fast).
        window_range: the window lies within steps [first, last).
        same_latent: whether the rollouts of a prompt start from the same noise.
    """

    steps: int
    kind: str
    noise_level: float
    guidance: float
    window: int
    window_range: list[int]
    same_latent: bool


@dataclass
class RelevanceConfig:
    """What the maps are made of.

    Attributes:
        blocks: transformer blocks, averaged.
        heads: attention heads, averaged; an empty list is all of them.
        columns: text columns of the core words: ``clip``, ``t5`` or ``both``.
        softmax_over: ``joint`` or ``text``.
    """

    blocks: list[int]
    heads: list[int]
    columns: str
    softmax_over: str


@dataclass
class TrainConfig:
    """The optimisation.

    Attributes:
        epochs: rounds of sampling and updating.
        groups: prompts per epoch.
        group_size: rollouts per prompt.
        micro_batch: rollouts that go through the model at once, in sampling and updating alike.
        updates_per_epoch: optimizer steps on the rollouts of one epoch; the first is on-policy.
        lr, betas, weight_decay: AdamW's.
        schedule: of the learning rate: ``constant`` (Flow-GRPO) or ``linear``, from ``lr`` to 0 over the epochs.
        max_grad_norm: gradients are clipped to this norm.
        clip_range: of one ratio per image.
        adv_clip: largest absolute advantage.
        std: advantages are divided by the deviation of the whole ``batch`` or of the ``group``.
        beta: coefficient of the KL penalty; 0 switches it off.
        kl: ``flow_grpo`` (as in its code) or ``paper`` (the divergence itself).
        ema_decay, ema_every: average of the trained weights, updated every so many optimizer steps.
        ratio_tolerance: the run stops when a ratio of the first update of an epoch is further than this from 1.
        collapse_epochs: the run stops when for so many epochs the reward is under half its first epoch's, or the
            diversity within groups under a twentieth of it.
        checkpoint_every: epochs between checkpoints.
        keep: checkpoints that are kept.
        guard: GRPO-Guard's ratio normalisation and division by the time step (arXiv 2510.22319); for sde steps.
    """

    epochs: int
    groups: int
    group_size: int
    micro_batch: int
    updates_per_epoch: int
    lr: float
    schedule: str
    betas: list[float]
    weight_decay: float
    max_grad_norm: float
    clip_range: float
    adv_clip: float
    std: str
    beta: float
    kl: str
    ema_decay: float
    ema_every: int
    ratio_tolerance: float
    collapse_epochs: int
    checkpoint_every: int
    keep: int
    guard: bool = False


@dataclass
class EvaluationConfig:
    """How a model is scored on the held-out prompts: deterministic sampling, noise keyed by prompt and image.

    Attributes:
        steps: denoising steps.
        guidance: classifier-free guidance scale.
        images: images per prompt.
        seed: of the noise, the same for every method.
        cross_images: images per prompt of the other tasks' test prompts, on which a trained model is scored too; 0
            leaves that out.
        every: epochs between evaluations while training; 0 for none.
        every_images: images per prompt in those.
    """

    steps: int
    guidance: float
    images: int
    cross_images: int
    seed: int
    every: int
    every_images: int


@dataclass
class RewardsConfig:
    """Several rewards at once.

    Attributes:
        others: weights of other tasks' rewards, e.g. ``+rewards.others.pickscore=0.5``; the run's own task has 1.
        normalise: whether rewards are standardised within their group before they are added.
    """

    others: dict[str, float] = field(default_factory=dict)
    normalise: bool = True


@dataclass
class Config:
    """All settings of a run.

    ``seed`` is that of adapters, prompts and noise; ``tracker`` a name that accelerate knows; ``variant`` the name of a
    published change of the method, which becomes part of the method's name in results.
    """

    task: TaskConfig
    method: MethodConfig
    scale: str
    model: ModelConfig
    sampling: SamplingConfig
    relevance: RelevanceConfig
    train: TrainConfig
    evaluation: EvaluationConfig
    rewards: RewardsConfig = field(default_factory=RewardsConfig)
    variant: str | None = None
    seed: int = 0
    run: str = "???"
    tracker: str | None = None
    evaluators: dict[str, str] = field(default_factory=dict)


ConfigStore.instance().store("schema", Config)


def _suffix(*names: str | None) -> str:
    return "".join(f"+{name}" for name in names if name)


OmegaConf.register_new_resolver("suffix", _suffix)

CHOICES = {
    "method.arm": ("uniform", "spatial", "temporal", "star", "star_shuffled", "star_random"),
    "method.reduction": ("image", "position"),
    "model.dtype": ("float32", "float16", "bfloat16"),
    "model.parameters": ("lora", "full"),
    "sampling.kind": ("sde", "cps"),
    "relevance.columns": ("clip", "t5", "both"),
    "relevance.softmax_over": ("joint", "text"),
    "train.schedule": ("constant", "linear"),
    "train.std": ("batch", "group"),
    "train.kl": ("flow_grpo", "paper"),
}
NOT_NEGATIVE = ("sampling.window", "train.weight_decay", "train.beta", "evaluation.cross_images", "evaluation.every", "seed")
PAIRS = ("sampling.window_range", "train.betas")
_POSITIVE = """model.resolution model.text_length model.lora_rank sampling.steps train.epochs train.groups train.group_size
    train.micro_batch train.updates_per_epoch train.lr train.clip_range train.adv_clip train.max_grad_norm train.ema_every
    train.ratio_tolerance model.lora_alpha
    train.checkpoint_every train.keep train.collapse_epochs sampling.noise_level evaluation.steps evaluation.images
    evaluation.every_images"""
POSITIVE = _POSITIVE.split()
GROUPS = ("task", "method", "scale", "model", "variant", "preset")
STABLE_GROUP = 12
DRAWING = ("steps", "guidance", "seed")
"""The settings of an evaluation that change its images, rather than their number."""
THRIFT = ("model.gradient_checkpointing", "model.offload", "train.checkpoint_every", "train.keep")
"""Settings that change where things are and how often they are computed or kept, but not what is computed."""
UNTRAINED = ("name", "path", "resolution", "text_length", "dtype")
"""The settings of a model that matter before it is trained."""


def load(overrides: Sequence[str]) -> Config:
    """Compose the settings of a run.

    Args:
        overrides: ``key=value`` words in Hydra's grammar.

    Raises:
        UserError: an unknown file or key, a value of the wrong type or out of range; the line names it and what is allowed.
    """
    for word in overrides:
        if "=" not in word:
            raise UserError(f"{word!r} is no setting; write key=value, e.g. task=geneval or train.epochs=5")
        group, _, value = word.partition("=")
        if group not in GROUPS:
            _check_key(group)
        elif value not in options(group):
            raise UserError(f"no {group} {value!r}; there are: {', '.join(options(group))}")
    try:
        with initialize_config_module("star.conf", version_base=None):
            composed = compose("config", overrides=list(overrides))
        config: Any = OmegaConf.to_object(composed)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(f"settings: {_one_line(error.__cause__ or error)}") from None
    check(config)
    return config


def options(group: str) -> list[str]:
    """The names of a group's files, e.g. of all methods."""
    folders = [resources.files("star.conf") / group]
    if group == "method":
        folders.append(resources.files("baselines") / group)
    return sorted(Path(file.name).stem for folder in folders for file in folder.iterdir() if file.name.endswith(".yaml"))


def _check_key(key: str) -> None:
    """Refuse a dotted name that no dataclass here has, naming those that it could be."""
    kind: Any = Config
    path = key.lstrip("+~").split(".")
    for depth, part in enumerate(path):
        known = {f.name: f.type for f in fields(kind)} if is_dataclass(kind) else {}
        if is_dataclass(kind) and part not in known:
            owner = f"{'.'.join(path[:depth])} has" if depth else "there are"
            raise UserError(f"{key} is no setting; {owner}: {', '.join(known)}")
        kind = known.get(part)


def check(config: Config) -> None:
    """Ranges and combinations that types cannot say.

    Raises:
        UserError: names the setting, its value and what is allowed.
    """
    _check_values(config)
    _check_method(config.method)
    _check_sampling(config.sampling, config.train)
    _check_batches(config.train)
    if config.model.shard and config.model.parameters == "full":
        raise UserError(
            "model.shard=true shares out the frozen weights, and model.parameters=full leaves none; use model.parameters=lora "
            "or model.shard=false"
        )
    for name in config.rewards.others:
        if name not in config.evaluators or name == config.task.name:
            known = ", ".join(sorted(set(config.evaluators) - {config.task.name}))
            raise UserError(f"rewards.others={name}: not another task; there are: {known}")


def _check_values(config: Config) -> None:
    for name, allowed in CHOICES.items():
        if get(config, name) not in allowed:
            raise UserError(f"{name}={get(config, name)} is not known; it is one of {', '.join(allowed)}")
    for name, value in _numbers(to_dict(config)):
        if not isfinite(value):
            raise UserError(f"{name}={value} must be a finite number")
    for name in POSITIVE:
        if not get(config, name) > 0:
            raise UserError(f"{name}={get(config, name)} must be greater than 0")
    for name in NOT_NEGATIVE:
        if not get(config, name) >= 0:
            raise UserError(f"{name}={get(config, name)} must not be negative")
    for name in PAIRS:
        if len(get(config, name)) != 2:
            raise UserError(f"{name}={get(config, name)} must be two numbers")
    if not 0 <= config.train.ema_decay <= 1:
        raise UserError(f"train.ema_decay={config.train.ema_decay} must lie in [0, 1]")
    if not all(0 <= beta < 1 for beta in config.train.betas):
        raise UserError(f"train.betas={config.train.betas} must lie in [0, 1)")


def _check_method(method: MethodConfig) -> None:
    if method.clip_range is not None and not method.clip_range > 0:
        raise UserError(f"method.clip_range={method.clip_range} must be above 0, or null for the scale's")
    if not (0 <= method.mix <= 1 and method.exponent > 0 and (method.cap is None or method.cap > 1)):
        raise UserError(
            f"method.mix={method.mix} must be in [0, 1], method.exponent={method.exponent} above 0 and "
            f"method.cap={method.cap} above 1 or null"
        )


def _check_sampling(sampling: SamplingConfig, train: TrainConfig) -> None:
    if sampling.kind == "cps" and not sampling.noise_level <= 1:
        raise UserError(f"sampling.noise_level={sampling.noise_level} must be at most 1 for sampling.kind=cps")
    if sampling.kind == "cps" and train.beta and train.kl == "flow_grpo":
        raise UserError("train.kl=flow_grpo leaves out a time step that cps transitions do not have; use train.kl=paper")
    if sampling.kind == "cps" and train.guard:
        raise UserError("train.guard normalises the log-ratios of densities, which cps transitions do not have; use kind=sde")
    if not sampling.window and sampling.steps < 2:
        raise UserError(f"sampling.steps={sampling.steps} must be at least 2, because the last one is never trained")
    if sampling.window:
        first, last = sampling.window_range
        if not 0 <= first <= last - sampling.window or last > sampling.steps - 1:
            raise UserError(
                f"sampling.window={sampling.window} must fit into sampling.window_range=[{first}, {last}), which must "
                f"lie within steps 0 to {sampling.steps - 2} (the last step is never trained)"
            )


def _check_batches(train: TrainConfig) -> None:
    if train.group_size < 2:
        raise UserError(f"train.group_size={train.group_size}: advantages compare rollouts of a prompt, so at least 2")
    rollouts = train.groups * train.group_size
    if rollouts % train.micro_batch:
        raise UserError(f"train.micro_batch={train.micro_batch} must divide the {rollouts} rollouts of an epoch")
    if rollouts // train.micro_batch < train.updates_per_epoch:
        raise UserError(
            f"train.updates_per_epoch={train.updates_per_epoch}, but an epoch has only "
            f"{rollouts // train.micro_batch} micro-batches; lower train.micro_batch"
        )


def cautions(config: Config) -> list[str]:
    """What is allowed but reported to fail, a line each with the report; empty for settings that nobody complained of."""
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
    return found


def label(config: Config, method: str) -> str:
    """A method's name in results: with the base model and the variant, where they are not the scale's own.

    The base has no variant, unless that evaluates in another way.
    """
    shared = method == "base" and not evaluation_changes(config)
    return method + _suffix(config.model.name, None if shared else config.variant)


def evaluation_changes(config: Config) -> dict[str, Any]:
    """How images are drawn for the evaluation, where that is not the scale's own way: ``{"guidance": 1.0}``."""
    own = _scale(config.scale).evaluation
    return {name: value for name in DRAWING if (value := getattr(config.evaluation, name)) != getattr(own, name)}


@cache
def _scale(name: str) -> Config:
    return load([f"scale={name}"])


def get(config: Config, name: str) -> Any:
    """A setting by its dotted name."""
    value: Any = config
    for part in name.split("."):
        value = getattr(value, part)
    return value


def _numbers(settings: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Every number among nested settings, with the dotted name of the setting that it belongs to."""
    if isinstance(settings, dict):
        for key, value in settings.items():
            yield from _numbers(value, f"{name}.{key}" if name else key)
    elif isinstance(settings, list):
        for value in settings:
            yield from _numbers(value, name)
    elif isinstance(settings, float):
        yield name, settings


def to_yaml(config: Config) -> str:
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def to_dict(config: Config) -> dict:
    """Plain nested dict of all settings."""
    result = OmegaConf.to_container(OmegaConf.structured(config))
    assert isinstance(result, dict)
    return result


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
    # Whatever they are, they count as the scale's own.
    for name in THRIFT:
        group, _, key = name.partition(".")
        known[group][key] = get(_scale(config.scale), name)
    known["model"]["path"] = config.model.path or shipped("weights")
    used = {config.task.name, measured, *config.rewards.others}
    known["evaluators"] = {name: engine for name, engine in config.evaluators.items() if name in used}
    if known["evaluators"].get("pickscore") == "mini":
        known["evaluators"]["pickscore"] = shipped("taste_weights")
    return known


def shared_terms(config: Config) -> dict:
    """What arms that are compared must have in common: all that training depends on but the method, its maps and the seed."""
    return {name: value for name, value in identity(config).items() if name not in ("method", "relevance", "seed")}


@cache
def shipped(folder: str) -> str:
    """The name of a folder of weights that ships with the mini world, with the start of their digest."""
    return f"{folder}@{weights_digest(Path(str(resources.files('star.mini')), folder))[:12]}"


def base_identity(config: Config) -> dict:
    """What an evaluation of the untrained model depends on."""
    known = identity(config, config.task.name)
    model = {name: known["model"][name] for name in UNTRAINED}
    evaluation = {name: known["evaluation"][name] for name in (*DRAWING, "images")}
    return {name: known[name] for name in ("task", "scale", "evaluators")} | {"model": model, "evaluation": evaluation}


def base_folder(config: Config) -> Path:
    """Where an evaluation of the untrained model is kept."""
    return Path("runs", config.scale, config.task.name, label(config, "base"))


def other_tasks(config: Config) -> list[str]:
    """The tasks beside its own that a trained checkpoint is measured on: what it lost there must show."""
    return sorted(set(config.evaluators) - {config.task.name}) if config.evaluation.cross_images else []


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    kept = [line for line in lines if not line.startswith(("full_key:", "object_type=", "reference_type=", "To append"))]
    key = next((line.removeprefix("full_key:").strip() for line in lines if line.startswith("full_key:")), None)
    return (f"{key}: " if key else "") + " ".join(kept)
