"""The settings of a run: their types, the values that each may have, and what they mean.

A value's range stands beside its type, as a :class:`Rule`; combinations of settings are checked in
:mod:`star.config.checks`.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple

from omegaconf import OmegaConf

from star.common.plugins import is_path
from star.method import choices
from star.method.arms import MAPS, RATIOS


class Rule(NamedTuple):
    """A condition on a setting's value, and the words that state it behind ``name=value`` in an error message."""

    allows: Callable[[Any], bool]
    text: str


def one_of(*names: str) -> Rule:
    """One of some words."""
    return Rule(lambda value: value in names, f"is not known; it is one of {', '.join(names)}")


WORD = re.compile(r"[\w-][\w.-]*", re.ASCII)
"""The words of names in results, which ``+``, ``:`` and ``@`` join; none leads to another folder, as ``..`` would."""


RESERVED_ON_WINDOWS = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?|.*\.", re.IGNORECASE)
"""Folder names that Windows takes for devices, or whose final dot it drops."""


def _is_word(value: str) -> bool:
    return bool(WORD.fullmatch(value)) and not RESERVED_ON_WINDOWS.fullmatch(value)


def _is_name(value: str) -> bool:
    head, *changes = value.split("+")
    return head.lower() != "base" and all(_is_word(part) for part in head.split("@") + changes) and head.count("@") < 2


POSITIVE = Rule(lambda value: value > 0, "must be greater than 0")
MANY = 10_000
"""The largest count that is accepted; a larger one would fill the memory and can only be a mistake."""
COUNT = Rule(lambda value: 0 < value <= MANY, f"must lie between 1 and {MANY:,}")
MINUTES = Rule(lambda value: 0 < value < 10**6, "must lie between 1 and 999,999 minutes")
EPOCHS = Rule(lambda value: 0 < value < 10**6, "must lie between 1 and 999,999")
COUNT_OR_NONE = Rule(lambda value: 0 <= value <= MANY, f"must lie between 0 and {MANY:,}")
TEXT_LENGTH = Rule(lambda value: 0 < value <= 512, "must lie between 1 and 512, the most that the pipeline takes")
NOT_NEGATIVE = Rule(lambda value: value >= 0, "must not be negative")
BELOW_2_63 = Rule(lambda value: value < 2**63, "must be less than 2^63")
SHARE = Rule(lambda value: 0 <= value <= 1, "must lie in [0, 1]")
NOISE = Rule(lambda value: value >= 1e-6, "must be at least 1e-6: with less noise a step has no log-probability")
ABOVE_0_OR_NULL = Rule(lambda value: value is None or value > 0, "must be above 0, or null for one that is worked out")
ABOVE_1_OR_NULL = Rule(lambda value: value is None or value > 1, "must be above 1, or null for none")
TWO = Rule(lambda value: len(value) == 2, "must be two numbers")
ALL_BELOW_1 = Rule(lambda value: all(0 <= beta < 1 for beta in value), "must lie in [0, 1)")
NAME = Rule(
    _is_name,
    "is no name for results: write letters, digits, '_', '-' and '.', with changes behind '+'; 'base' is taken, and what "
    "Windows calls devices",
)
TABLES = ("curves", "commands", "images", "gradient", "influence", "first_updates", "lasting")
"""The tables beside the tasks' result files, see :mod:`star.records.folder`; no task may have their names."""

TASK = Rule(
    lambda value: _is_word(value) and "." not in value and value.lower() not in TABLES,
    f"is no name for a task: write letters, digits, '_' and '-'; {', '.join(TABLES)} are other tables' names",
)
NAME_OR_NULL = Rule(lambda value: value is None or _is_word(value), "must be a word of letters, digits, '_', '-', '.'")
PATH_OR_NULL = Rule(lambda value: value is None or is_path(value), "is no path of a class of one's own, as my_module:MyClass")
REDUCTION = one_of(*RATIOS)
CLIP = one_of(*choices.CLIPS)
NORMALISE, STEPS = one_of(*choices.NORMALISE), one_of(*choices.STEPS)
STD, KL = one_of(*choices.STDS), one_of(*choices.KLS)
COLUMNS, SOFTMAX_OVER = one_of(*choices.COLUMNS), one_of(*choices.SOFTMAX_OVER)
COLUMNS_COUNT = one_of(*choices.COLUMNS_COUNT)
DTYPE, PARAMETERS = one_of("float32", "float16", "bfloat16"), one_of("lora", "full")
ATTENTION = Rule(
    lambda value: value in (None, "flash", "efficient", "cudnn", "math"),
    "is not known; it is flash, efficient, cudnn, math, or null for the usual one",
)
KERNELS = one_of("auto", "torch", "onednn")
KIND, SCHEDULE = one_of(*choices.STOCHASTIC), one_of("constant", "linear")
ARM = Rule(
    lambda value: value in MAPS or is_path(value),
    f"is not known; it is one of {', '.join(MAPS)}, or a function of one's own, as my_module:my_map",
)


@dataclass
class TaskConfig:
    """What is rewarded.

    Attributes:
        name: the task's name in results: ``geneval``, ``ocr``, ``pickscore`` or ``vivid``, or a new one for your own prompts.
        beta: the KL coefficient that Flow-GRPO published for the task, 0 for ``vivid``; the default of ``train.beta`` with
            ``scale=paper``, and without effect at mini.
        prompts: a class of your own with the prompts, as ``my_module:MyTask``, for which ``task.name`` must be a new name;
            null for the built-in prompts of the task.
    """

    name: Annotated[str, TASK]
    beta: Annotated[float, NOT_NEGATIVE]
    prompts: Annotated[str | None, PATH_OR_NULL] = None


@dataclass
class MethodConfig:
    """How a rollout's advantage is allocated.

    Attributes:
        name: the method's name in results; by default that of its arm (``method=NAME``).
        arm: how weights are made: ``star``, ``spatial``, ``temporal``, ``uniform`` (1 everywhere) or another key of
            :data:`star.method.arms.MAPS`, or a function of your own as ``my_module:my_map``.
        reduction: what each ratio covers: the ``image``, the image with weighted positions (``image_weighted``), the image's
            value with each position's gradient (``detached``), or one ``position``; see :mod:`star.method.objective`.
        clip_range: how far from 1 a ratio may be before it is clipped; null to derive it from ``train.clip_range``.
        cap: the largest weight before mixing, above 1; the excess goes to the other weights; null for no cap.
        mix: share of the map in the weights, in [0, 1]; the rest is uniform.
        exponent: power that relevance is raised to before anything else, above 0; above 1 it sharpens the map.
        weighted_kl: whether the KL penalty is weighted like the advantage.
        normalise: weights have mean 1 over the steps and positions of a ``rollout``, or over the positions of each ``step``.
        steps: weight of a step's policy loss: 1 (``as_sampled``), or inverse to the size of its score, mean 1 (``equal``).
        clip: what keeps an update near the policy that sampled: clipping the ``ratio`` to the clip range, or bounding the
            exact ``kl`` of the transitions, at the value where the standard deviation of a log-ratio is the clip range
            (:class:`star.method.objective.Bound`).
    """

    name: Annotated[str, NAME]
    arm: Annotated[str, ARM]
    reduction: Annotated[str, REDUCTION]
    clip_range: Annotated[float | None, ABOVE_0_OR_NULL] = None
    cap: Annotated[float | None, ABOVE_1_OR_NULL] = None
    mix: Annotated[float, SHARE] = 1.0
    exponent: Annotated[float, POSITIVE] = 1.0
    weighted_kl: bool = False
    normalise: Annotated[str, NORMALISE] = "rollout"
    steps: Annotated[str, STEPS] = "as_sampled"
    clip: Annotated[str, CLIP] = "ratio"


@dataclass
class ModelConfig:
    """The base model.

    Attributes:
        path: folder or hub name of a diffusers pipeline; null for the mini base that ships with the package.
        resolution: side of the square images in pixels.
        text_length: number of T5 tokens per prompt, 1 to 512 (``max_sequence_length`` of the pipeline).
        dtype: precision of the transformer's and the text encoders' frozen weights and activations: float32, float16 or
            bfloat16. The autoencoder and trained weights are always float32.
        parameters: what is trained: LoRA adapters (``lora``), or all weights of the transformer (``full``).
        lora_rank: rank of the LoRA adapters.
        lora_alpha: the adapters' output is scaled by ``lora_alpha / lora_rank``.
        lora_targets: endings of the names of the modules that get adapters.
        gradient_checkpointing: recompute activations in the backward pass: saves memory, costs a second forward pass.
        name: name of a base model that is not the scale's own, which becomes part of the method's name in results; else null.
        kind: a class of your own that loads the model, as ``my_module:MyModel``, for which ``model.name`` must be set; null
            for the pipelines that are known here.
        offload: keep text encoders and autoencoder in main memory, and on the GPU only while they work; null to do so only
            where they would not fit beside the training.
        decode_batch: number of images that the autoencoder decodes at once.
        attention: attention kernel of the transformer, the same in rollouts and updates: ``flash``, ``efficient``, ``cudnn``
            or ``math``; null for flash in half precision and efficient in float32 on a CUDA GPU, the CPU kernel on a CPU.
        kernels: library for the products with frozen weights on a CPU: ``torch``, ``onednn``, or ``auto`` to choose the
            faster one when a run starts; once it has a checkpoint, the run keeps it.
        compile: compile the transformer's blocks with ``torch.compile``, which takes minutes at the start.
        shard: each process keeps only its part of the transformer's frozen weights (FSDP2); only for ``parameters=lora``.
            Adapters cannot be folded into sharded weights, so rollouts of a float32 model differ in their last digits from
            unsharded ones; sharding is no part of a run's identity.
    """

    path: str | None
    resolution: Annotated[int, POSITIVE]
    text_length: Annotated[int, TEXT_LENGTH]
    dtype: Annotated[str, DTYPE]
    parameters: Annotated[str, PARAMETERS]
    lora_rank: Annotated[int, COUNT]
    lora_alpha: Annotated[int, POSITIVE]
    lora_targets: list[str]
    gradient_checkpointing: bool
    offload: bool | None
    decode_batch: Annotated[int, POSITIVE] = 8
    attention: Annotated[str | None, ATTENTION] = None
    kernels: Annotated[str, KERNELS] = "auto"
    compile: bool = False
    name: Annotated[str | None, NAME_OR_NULL] = None
    kind: Annotated[str | None, PATH_OR_NULL] = None
    shard: bool = False


@dataclass
class SamplingConfig:
    """How rollouts are drawn.

    Attributes:
        steps: denoising steps.
        kind: kind of the stochastic steps: ``sde`` (Flow-GRPO) or ``cps`` (coefficients-preserving sampling).
        noise_level: how much noise a stochastic step adds, above 0: Flow-GRPO's ``a`` for ``sde``, eta <= 1 for ``cps``.
        guidance: classifier-free guidance scale; 1 for none.
        window: number of consecutive stochastic steps, which are the trained ones; the other steps are deterministic
            (Flow-GRPO-Fast). 0 makes all steps stochastic and trains all but the last (Flow-GRPO).
        window_range: each epoch places the window, if any, at random within steps [first, last), counted from 0.
        same_latent: whether the rollouts of a prompt start from the same noise.
    """

    steps: Annotated[int, COUNT]
    kind: Annotated[str, KIND]
    noise_level: Annotated[float, NOISE]
    guidance: float
    window: Annotated[int, NOT_NEGATIVE]
    window_range: Annotated[list[int], TWO]
    same_latent: bool

    @property
    def trainable(self) -> range:
        """The steps that training may use: the window's range, or all but the last, whose standard deviation is almost 0."""
        return range(*self.window_range) if self.window else range(self.steps - 1)

    @property
    def trained(self) -> int:
        """How many steps of a rollout are trained."""
        return self.window or len(self.trainable)


@dataclass
class RelevanceConfig:
    """What the maps are made of.

    Attributes:
        blocks: transformer blocks whose attention is averaged, by index from 0.
        heads: attention heads that are averaged, by index from 0; an empty list takes all.
        columns: text encoders whose tokens of the core words count: ``clip``, ``t5`` or ``both``.
        softmax_over: the keys over which attention is normalised: all (``joint``), or the text keys alone (``text``).
        columns_count: how the core words' tokens are summed: ``as_attended``, or ``equally``, each first scaled to the same
            mean over positions.
    """

    blocks: list[int]
    heads: list[int]
    columns: Annotated[str, COLUMNS]
    softmax_over: Annotated[str, SOFTMAX_OVER]
    columns_count: Annotated[str, COLUMNS_COUNT] = "as_attended"


@dataclass
class TrainConfig:
    """The optimisation.

    Attributes:
        epochs: rounds of sampling and updating.
        groups: prompts per epoch.
        group_size: rollouts per prompt, at least 2.
        micro_batch: images that go through the model at once, in rollouts, updates and evaluations alike (with guidance as
            twice as many rows); it must divide the rollouts of an epoch.
        updates_per_epoch: optimizer steps on the rollouts of one epoch; the first is on-policy.
        lr: AdamW's learning rate in the first epoch.
        betas, weight_decay: AdamW's.
        schedule: schedule of the learning rate: ``constant`` (Flow-GRPO) or ``linear``, by equal steps from ``lr``
            to ``lr / epochs`` in the last epoch.
        max_grad_norm: gradients are clipped to this norm.
        clip_range: how far from 1 an image's ratio may be before it is clipped; the range of other ratios follows from it.
        adv_clip: advantages are clipped to this absolute value.
        std: advantages are divided by the rewards' standard deviation in the whole epoch (``batch``) or in the ``group``.
        beta: coefficient of the KL penalty against the untrained model; 0 switches it off.
        kl: form of the KL penalty: ``flow_grpo`` (as in its code) or ``paper`` (the divergence itself).
        ema_decay: largest decay, in [0, 1], of the moving average of the trained weights, which is what is evaluated.
        ema_every: the moving average is updated every so many optimizer steps.
        ratio_tolerance: the run stops when in the first update of an epoch more than a hundredth of the ratios are further
            than this from 1, or one is ten times as far; null for what rounding explains in the model's precision
            (:func:`star.method.objective.ratio_tolerance_for`).
        collapse_epochs: the run stops after so many epochs in a row in which the reward is below half the first epoch's, if
            that was above 0, or the diversity within groups is at most a twentieth of the first epoch's.
        checkpoint_every: epochs between checkpoints.
        checkpoint_minutes: an epoch also ends with a checkpoint if the last one is more than this many minutes old.
        keep: checkpoints that are kept, the newest ones; while epochs are bad (``collapse_epochs``), the last sound one too.
        guard: GRPO-Guard's ratio normalisation and division by the time step (arXiv 2510.22319); only for ``sde`` steps.
        deterministic: on a GPU, use only kernels that give the same digits every time, so that a run that was cut off ends
            like one that was not; slower. CPU kernels always do.
    """

    epochs: Annotated[int, EPOCHS]
    groups: Annotated[int, COUNT]
    group_size: Annotated[int, COUNT]
    micro_batch: Annotated[int, COUNT]
    updates_per_epoch: Annotated[int, POSITIVE]
    lr: Annotated[float, POSITIVE]
    schedule: Annotated[str, SCHEDULE]
    betas: Annotated[list[float], TWO, ALL_BELOW_1]
    weight_decay: Annotated[float, NOT_NEGATIVE]
    max_grad_norm: Annotated[float, POSITIVE]
    clip_range: Annotated[float, POSITIVE]
    adv_clip: Annotated[float, POSITIVE]
    std: Annotated[str, STD]
    beta: Annotated[float, NOT_NEGATIVE]
    kl: Annotated[str, KL]
    ema_decay: Annotated[float, SHARE]
    ema_every: Annotated[int, POSITIVE]
    ratio_tolerance: Annotated[float | None, ABOVE_0_OR_NULL]
    collapse_epochs: Annotated[int, POSITIVE]
    checkpoint_every: Annotated[int, POSITIVE]
    keep: Annotated[int, POSITIVE]
    checkpoint_minutes: Annotated[float, POSITIVE] = 15.0
    guard: bool = False
    deterministic: bool = False

    @property
    def rollouts(self) -> int:
        """How many rollouts an epoch has."""
        return self.groups * self.group_size

    @property
    def micro_batches(self) -> int:
        """How many micro-batches an epoch has."""
        return self.rollouts // self.micro_batch


@dataclass
class EvaluationConfig:
    """How a model is scored on the held-out prompts: deterministic sampling, noise keyed by prompt and image.

    Attributes:
        steps: denoising steps.
        guidance: classifier-free guidance scale.
        images: images per prompt.
        seed: seed of the noise, the same for every method.
        cross_images: images per test prompt of the other tasks, on which a trained model is scored too; 0 to leave them out.
        every: epochs between evaluations during training; 0 for none.
        every_images: images per prompt in the evaluations during training.
    """

    steps: Annotated[int, COUNT]
    guidance: float
    images: Annotated[int, COUNT]
    cross_images: Annotated[int, COUNT_OR_NONE]
    seed: Annotated[int, NOT_NEGATIVE, BELOW_2_63]
    every: Annotated[int, NOT_NEGATIVE]
    every_images: Annotated[int, COUNT]


@dataclass
class RewardsConfig:
    """Several rewards at once.

    Attributes:
        others: weights of further rewards, each by its task or as ``my_module:MyReward``, e.g.
            ``+rewards.others.pickscore=0.5``; the reward of the run's own task has weight 1.
        normalise: whether rewards are standardised within their group before they are added.
    """

    others: dict[str, float] = field(default_factory=dict)
    normalise: bool = True


@dataclass
class Config:
    """All settings of a run.

    Attributes:
        task, method, model, sampling, relevance, train, evaluation, rewards: the groups.
        scale: the source of the default settings: ``mini``, the embedded small model, or ``paper``, SD3.5 Medium.
        variant: a change of the method that has a name, which becomes part of the method's in results: ``fast`` and
            ``guard`` as published, ``cps`` and ``nocfg``, the parts of ``fast``, or ``lr1e-3``, another learning rate; null
            for none.
        seed: random seed of the adapters' initial values, the order of prompts and the rollouts' noise.
        run: the run's folder; by default one below ``runs`` that is named after the settings.
        tracker: where each epoch's figures go besides ``metrics.jsonl``, by a name that accelerate knows (``tensorboard``,
            ``wandb``); null for nowhere.
        evaluators: what judges the images of each task: an engine, or a class of your own as ``my_module:MyReward``.
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
    seed: Annotated[int, NOT_NEGATIVE, BELOW_2_63] = 0
    run: str = ""
    tracker: str | None = None
    evaluators: dict[str, str] = field(default_factory=dict)

    @property
    def keep_means(self) -> bool:
        """Whether updates need the means of the rollouts' transitions, which take as much memory as the latents."""
        return self.train.guard or self.method.clip == "kl"


def get(config: Config, name: str) -> Any:
    """A setting by its dotted name."""
    value: Any = config
    for part in name.split("."):
        value = getattr(value, part)
    return value


def to_yaml(config: Config) -> str:
    """All settings as YAML, as a run's ``config.yaml`` holds them."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The settings of a nested dict by their dotted names."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found
