"""The settings of a run: their types, the values that each may have, and what they mean.

A value's range stands beside its type, as a :class:`Rule`; what two settings mean for each other is in
:mod:`star.config.checks`.
"""

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, NamedTuple

from omegaconf import OmegaConf

from star.common.plugins import is_path
from star.method.arms import MAPS, RATIOS


class Rule(NamedTuple):
    """What a setting's value must satisfy, and the words that tell so behind ``name=value``."""

    allows: Callable[[Any], bool]
    text: str


def one_of(*names: str) -> Rule:
    """One of some words."""
    return Rule(lambda value: value in names, f"is not known; it is one of {', '.join(names)}")


WORD = re.compile(r"[\w-][\w.-]*", re.ASCII)
"""What names in results are made of: ``+``, ``:`` and ``@`` join them, and none is the way to another folder, as ``..`` is."""


DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?|.*\.", re.IGNORECASE)
"""What Windows takes for a device, or cuts the dot off, as the name of a folder."""


def _is_word(value: str) -> bool:
    return bool(WORD.fullmatch(value)) and not DEVICES.fullmatch(value)


def _is_name(value: str) -> bool:
    head, *changes = value.split("+")
    return head.lower() != "base" and all(_is_word(part) for part in head.split("@") + changes) and head.count("@") < 2


POSITIVE = Rule(lambda value: value > 0, "must be greater than 0")
MANY = 10_000
"""The largest count that is taken: a larger one is a mistake, and would fill the memory."""
COUNT = Rule(lambda value: 0 < value <= MANY, f"must lie between 1 and {MANY:,}")
MINUTES = Rule(lambda value: 0 < value < 10**6, "must lie between 1 and 999,999 minutes")
EPOCHS = Rule(lambda value: 0 < value < 10**6, "must lie between 1 and 999,999")
COUNT_OR_NONE = Rule(lambda value: 0 <= value <= MANY, f"must lie between 0 and {MANY:,}")
TEXT_LENGTH = Rule(lambda value: 0 < value <= 512, "must lie between 1 and 512, the most that the pipeline takes")
NOT_NEGATIVE = Rule(lambda value: value >= 0, "must not be negative")
BELOW_2_63 = Rule(lambda value: value < 2**63, "must be less than 2^63")
SHARE = Rule(lambda value: 0 <= value <= 1, "must lie in [0, 1]")
ABOVE_0_OR_NULL = Rule(lambda value: value is None or value > 0, "must be above 0, or null for one that is worked out")
ABOVE_1_OR_NULL = Rule(lambda value: value is None or value > 1, "must be above 1, or null for none")
TWO = Rule(lambda value: len(value) == 2, "must be two numbers")
ALL_BELOW_1 = Rule(lambda value: all(0 <= beta < 1 for beta in value), "must lie in [0, 1)")
NAME = Rule(
    _is_name,
    "is no name for results: write letters, digits, '_', '-' and '.', with changes behind '+'; 'base' is taken, and what "
    "Windows calls devices",
)
TABLES = ("curves", "commands", "images", "gradient", "influence", "first_updates")
"""What lies beside the result files of tasks, see :mod:`star.records.folder`."""

TASK = Rule(
    lambda value: _is_word(value) and "." not in value and value.lower() not in TABLES,
    f"is no name for a task: write letters, digits, '_' and '-'; {', '.join(TABLES)} are other tables' names",
)
NAME_OR_NULL = Rule(lambda value: value is None or _is_word(value), "must be a word of letters, digits, '_', '-', '.'")
PATH_OR_NULL = Rule(lambda value: value is None or is_path(value), "is no path of a class of one's own, as my_module:MyClass")
REDUCTION = one_of(*RATIOS)
CLIP = one_of("ratio", "kl")
NORMALISE, STEPS = one_of("rollout", "step"), one_of("as_sampled", "equal")
STD, KL = one_of("batch", "group"), one_of("flow_grpo", "paper")
COLUMNS, SOFTMAX_OVER = one_of("clip", "t5", "both"), one_of("joint", "text")
COLUMNS_COUNT = one_of("as_attended", "equally")
DTYPE, PARAMETERS = one_of("float32", "float16", "bfloat16"), one_of("lora", "full")
ATTENTION = Rule(
    lambda value: value in (None, "flash", "efficient", "cudnn", "math"),
    "is not known; it is flash, efficient, cudnn, math, or null for the usual one",
)
KERNELS = one_of("auto", "torch", "onednn")
KIND, SCHEDULE = one_of("sde", "cps"), one_of("constant", "linear")
ARM = Rule(
    lambda value: value in MAPS or is_path(value),
    f"is not known; it is one of {', '.join(MAPS)}, or a function of one's own, as my_module:my_map",
)


@dataclass
class TaskConfig:
    """What is rewarded.

    Attributes:
        name: of the task, in results.
        beta: the KL coefficient that Flow-GRPO published for the task.
        prompts: a class of one's own with the prompts, as ``my_module:MyTask``, which needs a name that no other task has;
            null for the task's own.
    """

    name: Annotated[str, TASK]
    beta: Annotated[float, NOT_NEGATIVE]
    prompts: Annotated[str | None, PATH_OR_NULL] = None


@dataclass
class MethodConfig:
    """How a rollout's advantage is allocated.

    Attributes:
        name: of the method, in results.
        arm: how weights are made: a name of the table of arms, or a function of one's own as ``my_module:my_map``.
        reduction: what the ratio is of: the ``image``, the image with weighted positions (``image_weighted``), the image's
            value with each position's gradient (``detached``), or each ``position``; see :mod:`star.method.objective`.
        clip_range: explicit, or null for the scale's (per image) made comparable for the reduction.
        cap: the largest weight, before mixing; what is cut goes to the other positions; null for none.
        mix: share of the map in the weights; the rest is uniform.
        exponent: power that relevance is raised to before anything else.
        weighted_kl: whether the KL penalty is weighted like the advantage.
        normalise: weights have mean 1 over the steps and positions of a ``rollout``, or over the positions of each ``step``.
        steps: what the policy loss of a step counts for: 1 (``as_sampled``), or 1 over the size of its score (``equal``).
        clip: what keeps an update near the policy that sampled: its ``ratio`` within the clip range, or the exact ``kl`` of
            the transitions, up to where the ratio's deviation is the clip range (:class:`star.method.objective.Bound`). No
            part of a run's identity while it is ``ratio``.
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
        path: a diffusers folder or hub name; null for the mini base that ships with the package.
        resolution: side of the square images in pixels.
        text_length: T5 columns (``max_sequence_length`` of the pipeline).
        dtype: of frozen weights and activations: float32, float16 or bfloat16. Trained weights are always float32.
        parameters: what is trained: adapters (``lora``), or all weights of the transformer (``full``).
        lora_rank: of the adapters.
        lora_alpha: over the rank, it is the factor of the adapters.
        lora_targets: endings of the names of the modules that get adapters.
        gradient_checkpointing: trade a second forward for memory.
        name: of a base model that is not the scale's own; it becomes part of the method's name in results.
        kind: a class of one's own to load it by, as ``my_module:MyModel``, which needs a name; null for pipelines that are
            known.
        offload: keep text encoders and autoencoder in main memory, and on the GPU only while they work; null where they would
            not fit beside the training.
        decode_batch: images that the autoencoder decodes at once.
        attention: kernel of the transformer's attention, the same in rollouts and updates: ``flash``, ``efficient``,
            ``cudnn`` or ``math``; null for flash in half precision and efficient in float32 on a GPU, and a CPU's own there.
        kernels: of a CPU, for the products with frozen weights: ``torch``, ``onednn``, or ``auto`` for the faster one here,
            with which a run then goes on.
        compile: compile the transformer's blocks, which takes minutes at the start.
        shard: each process keeps only its part of the transformer's frozen weights (FSDP2); for ``lora``. It changes where
            weights are, and of a float32 model the last digits of rollouts, into whose weights no adapters are folded then; it
            is no part of a run's identity.
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
        kind: of the stochastic steps: ``sde`` (Flow-GRPO) or ``cps`` (coefficients-preserving sampling).
        noise_level: how much noise a stochastic step adds, Flow-GRPO's ``a``.
        guidance: classifier-free guidance scale; 1 for none.
        window: number of consecutive stochastic steps, which are the trained ones; 0 makes all steps stochastic and
            trains all but the last (Flow-GRPO). With a window the other steps are deterministic (Flow-GRPO-Fast).
        window_range: the window lies within steps [first, last).
        same_latent: whether the rollouts of a prompt start from the same noise.
    """

    steps: Annotated[int, COUNT]
    kind: Annotated[str, KIND]
    noise_level: Annotated[float, POSITIVE]
    guidance: float
    window: Annotated[int, NOT_NEGATIVE]
    window_range: Annotated[list[int], TWO]
    same_latent: bool

    @property
    def trainable(self) -> range:
        """The steps that training may use: the window's range, or all but the last, whose deviation is almost 0."""
        return range(*self.window_range) if self.window else range(self.steps - 1)

    @property
    def trained(self) -> int:
        """How many steps of a rollout are trained."""
        return self.window or len(self.trainable)


@dataclass
class RelevanceConfig:
    """What the maps are made of.

    Attributes:
        blocks: transformer blocks, averaged.
        heads: attention heads, averaged; an empty list is all of them.
        columns: text columns of the core words: ``clip``, ``t5`` or ``both``.
        softmax_over: what attention is a share of: all keys (``joint``), or text keys alone (``text``).
        columns_count: how core words' columns add up: ``as_attended``, or ``equally``, each scaled to the same mean over
            positions first.
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
        group_size: rollouts per prompt.
        micro_batch: rollouts that go through the model at once, in sampling and updating alike.
        updates_per_epoch: optimizer steps on the rollouts of one epoch; the first is on-policy.
        lr: AdamW's learning rate in the first epoch.
        betas, weight_decay: AdamW's.
        schedule: of the learning rate: ``constant`` (Flow-GRPO) or ``linear``, from ``lr`` to 0 over the epochs.
        max_grad_norm: gradients are clipped to this norm.
        clip_range: how far from 1 an image's ratio may be before it is clipped; the range of other ratios follows from it.
        adv_clip: largest absolute advantage.
        std: advantages are divided by the deviation of the whole ``batch`` or of the ``group``.
        beta: coefficient of the KL penalty against the untrained model; 0 switches it off.
        kl: ``flow_grpo`` (as in its code) or ``paper`` (the divergence itself).
        ema_decay, ema_every: average of the trained weights, updated every so many optimizer steps.
        ratio_tolerance: the run stops when a ratio of the first update of an epoch is further than this from 1; null for what
            rounding explains in the model's precision (:func:`star.method.objective.ratio_tolerance_for`).
        collapse_epochs: the run stops when for so many epochs the reward is under half its first epoch's, or the
            diversity within groups under a twentieth of it.
        checkpoint_every: epochs between checkpoints.
        checkpoint_minutes: the most time between them: what is not in one is lost where a job ends, and trained again.
        keep: checkpoints that are kept, and the last sound one while epochs are bad (``collapse_epochs``).
        guard: GRPO-Guard's ratio normalisation and division by the time step (arXiv 2510.22319); for sde steps.
        deterministic: on a GPU, only kernels that give the same digits every time, so that a run that was cut off ends as one
            that was not; slower. A CPU's always do.
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
        others: weights of other tasks' rewards, e.g. ``+rewards.others.pickscore=0.5``; the run's own task has 1.
        normalise: whether rewards are standardised within their group before they are added.
    """

    others: dict[str, float] = field(default_factory=dict)
    normalise: bool = True


@dataclass
class Config:
    """All settings of a run.

    Attributes:
        task, method, model, sampling, relevance, train, evaluation, rewards: the groups.
        scale: ``mini``, the embedded small model, or ``paper``, SD3.5 Medium: what all settings are by default.
        variant: the name of a published change of the method, which becomes part of the method's name in results; null for
            none.
        seed: of the adapters' initial values, the order of prompts, and noise.
        run: the run's folder; by default one below ``runs`` that tells the settings apart.
        tracker: where an epoch's figures go beside ``metrics.jsonl``, by a name that accelerate knows (``tensorboard``,
            ``wandb``); null for nowhere.
        evaluators: what judges the images of each task: an engine, or a class of one's own as ``my_module:MyReward``.
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
        """Whether updates need the means of the transitions that rollouts were drawn from; they are as large as latents."""
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


def to_dict(config: Config) -> dict:
    """Plain nested dict of all settings."""
    return asdict(config)
