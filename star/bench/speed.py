"""How fast training is: our epochs alternating with those of Flow-GRPO's published loop, and the ratios of their times.

Both draw the same rollouts and make the same updates, which is checked before anything is timed. Judging is not included.
"""

import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from diffusers import StableDiffusion3Pipeline
from torch import Tensor

from star.bench.flow_grpo import FlowGRPO, Rollouts, check, load
from star.bench.gpu.figures import seconds as measured
from star.bench.reddest import Reddest
from star.common.errors import RunStopped
from star.common.launched import check_alone
from star.common.noise import normal
from star.common.progress import bar
from star.common.statistics import Estimate, mean_interval
from star.config import Config
from star.config import load as load_config
from star.models.interface import BaseModel
from star.tasks import Task, load_task
from star.training import guards
from star.training.machine import loaded
from star.training.rollout import MicroBatch, Sample, plan, starts, step_noise, trained_steps
from star.training.trainer import Trainer

DEFAULTS = ("method=flow_grpo", "train.schedule=constant")
PHASES = ("rollouts", "update")

TOLERANCES = {"float32": (1e-4, 1e-3), "float16": (2e-2, 1e-1), "bfloat16": (1e-1, 3e-1)}
"""Precision of the model -> largest relative difference allowed between the rollouts of the two loops, and between the
gradients and parameters that follow."""

ADAPTERS = 0.02
"""Standard deviation of the values given to the adapters' second factor: left at its initial 0, they would have no effect."""

Row = tuple[str, Estimate]


@dataclass
class Epoch:
    """The random inputs of an epoch, drawn before it is timed.

    Attributes:
        number: of the epoch.
        samples: the epoch's n samples.
        steps: the trained steps.
        inputs: of each micro-batch: texts, latents to start from (B, C, H, W), and the noise of every step.
        advantages: (n,).
        shares: the micro-batches of each update.
    """

    number: int
    samples: list[Sample]
    steps: list[int]
    inputs: list[tuple[list[str], Tensor, list[Tensor]]]
    advantages: Tensor
    shares: list[list[int]]

    @classmethod
    def drawn(cls, trainer: Trainer, number: int) -> "Epoch":
        """The inputs of epoch ``number``, as the trainer draws them; advantages are noise."""
        config, train = trainer.config, trainer.config.train
        samples = plan(len(trainer.task.train), train.groups, train.group_size, config.seed, number)
        parts = [samples[start : start + train.micro_batch] for start in range(0, len(samples), train.micro_batch)]
        return cls(
            number=number,
            samples=samples,
            steps=trained_steps(config.sampling, config.seed, number),
            inputs=[_inputs(trainer, part, number) for part in parts],
            advantages=normal((len(samples),), config.seed, "advantages", number),
            shares=trainer.shares(len(parts), number),
        )


class Ours:
    """Our trainer, phase by phase."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.batches: list[MicroBatch] = []

    def rollouts(self, epoch: Epoch) -> None:
        """Sample an epoch."""
        self.batches = self.trainer.rollouts(epoch.samples, epoch.steps, epoch.number, lambda: None)

    def update(self, epoch: Epoch) -> None:
        """Learn from it."""
        for batch in self.batches:
            batch.advantages = epoch.advantages[batch.span]
        self.trainer.update(self.batches, len(self.batches), epoch.number)


class Published:
    """The published loop, phase by phase."""

    def __init__(self, loop: FlowGRPO) -> None:
        self.loop = loop
        self.batches: list[Rollouts] = []

    def rollouts(self, epoch: Epoch) -> None:
        """Sample an epoch."""
        self.batches = [self.loop.rollout(*drawn, epoch.steps) for drawn in epoch.inputs]

    def update(self, epoch: Epoch) -> None:
        """Learn from it."""
        gains = epoch.advantages.split(self.loop.config.train.micro_batch)
        for batch, part in zip(self.batches, gains, strict=True):
            batch.advantages = part
        self.loop.update([[self.batches[number] for number in share] for share in epoch.shares])


def measure(overrides: Sequence[str], rounds: int) -> list[Row]:
    """Time the configured model's epochs in our trainer and in the published loop; see :func:`compare`.

    Args:
        overrides: ``key=value`` words; by default the method is flow_grpo and the learning rate constant.
        rounds: epochs that are timed.

    Raises:
        UserError: a setting that cannot be used, or for which there is no published loop; or there are several processes.
        RunStopped: the two do not compute the same, or the GPU's memory is not enough.
    """
    check_alone("star bench speed")
    load_config([*DEFAULTS, *overrides], own_folder=False)  # wrong settings are reported before a folder is made
    with tempfile.TemporaryDirectory() as folder:
        config = load_config([*DEFAULTS, *overrides, f"run={folder}"])
        check(config)
        with guards.limits(config):
            base = loaded(config)
            return compare(config, base, load(config.model), load_task(config, config.task.name, Reddest()), rounds)


def compare(
    config: Config,
    base: BaseModel,
    pipeline: StableDiffusion3Pipeline,
    task: Task,
    rounds: int,
    disagree: Callable[[str], None] | None = None,
) -> list[Row]:
    """Time epochs of a model in our trainer against those of the same model in the published loop.

    The first epoch is compared and not timed. Then the two alternate phase by phase, and which goes first alternates from
    round to round, so that a change of the machine's speed affects both.

    Args:
        config: the settings of both.
        base: the model for our trainer, on its device. Its adapters are given new values.
        pipeline: the same frozen weights in float32, with adapters of its own, which are given the same values.
        task: whose prompts are drawn; it is asked for verdicts that nobody waits for.
        rounds: epochs that are timed.
        disagree: called with a message if the results differ by more than rounding; by default that is an error.

    Returns:
        (what, mean over rounds with Student's interval, if there are several): seconds of each side and their ratio, for
        rollouts, updates and whole epochs; images per second; and how far the results were apart.

    Raises:
        UserError: settings for which there is no published loop.
        RunStopped: the two do not compute the same, and ``disagree`` is None.
    """
    loop = FlowGRPO(pipeline, config, base.device)
    fill_adapters(base, config.seed)
    for name, parameter in base.trained.items():
        loop.trained[name].data.copy_(parameter.data)
    trainer = Trainer(config, task, base)
    loop.scaler = _scaler(trainer, trainer.scaler.get_scale())  # torch's own begins elsewhere
    ours, published = Ours(trainer), Published(loop)
    seconds: dict[str, list[float]] = defaultdict(list)
    with bar("are results equal?", rounds + 1) as display:
        apart = differences(ours, published, Epoch.drawn(trainer, 0))
        if told := disagreement(apart, config.model.dtype):
            if disagree is None:
                raise RunStopped(told)
            disagree(told)
        display.update("epochs in turn")
        display.advance()
        for number in range(1, rounds + 1):
            epoch = Epoch.drawn(trainer, number)
            sides = [("ours", ours), ("published", published)][:: 1 if number % 2 else -1]
            for phase in PHASES:
                for name, side in sides:
                    seconds[f"{phase} {name}"].append(measured(partial(getattr(side, phase), epoch), base.device))
            display.advance()
    return [
        *_rows(seconds, config.train.rollouts),
        *((f"{what} apart, millionths", mean_interval([1e6 * far])) for what, far in apart.items()),
    ]


def fill_adapters(base: BaseModel, seed: int) -> None:
    """Give the second factor of a model's adapters random values, see :data:`ADAPTERS`."""
    for name, parameter in base.trained.items():
        if "lora_B" in name:
            parameter.data.copy_(ADAPTERS * normal(tuple(parameter.shape), seed, name))


def differences(ours: Ours, published: Published, epoch: Epoch) -> dict[str, float]:
    """How far the two sides of an epoch are apart: rollouts, gradients as the optimizer saw them, and updated parameters.

    Both sides run the epoch, and must not have made an update before.

    Returns:
        what -> mean absolute difference as a share of the mean absolute value; for rollouts the largest of any micro-batch.
    """
    ours.rollouts(epoch)
    published.rollouts(epoch)
    pairs = [(own.trajectory, other) for own, other in zip(ours.batches, published.batches, strict=True)]
    apart = {
        # Without a window the published loop also keeps the last step's, which ours does not.
        "latents": max(_apart(own.latents, other.latents[: len(own.latents)]) for own, other in pairs),
        "log-probabilities": max(_apart(own.log_probs, other.log_probs[: len(own.log_probs)]) for own, other in pairs),
        "images": max(_apart(own.images, other.images) for own, other in pairs),
    }
    _update(ours, published, epoch)
    own, other = ours.trainer.base.trained.values(), published.loop.trained.values()
    gradients = _moments(ours.trainer.optimizer, own), _moments(published.loop.optimizer, other)
    return apart | {"gradients": _apart(*gradients), "parameters": _apart(_flat(own), _flat(other))}


def _update(ours: Ours, published: Published, epoch: Epoch) -> None:
    """Make both sides' updates; again, at a lower scale of the loss, where float16 overflowed and a side skipped one."""
    trainer, loop = ours.trainer, published.loop
    trained = [*trainer.base.trained.values(), *loop.trained.values()]
    before = [parameter.detach().clone() for parameter in trained]
    while True:
        scale = trainer.scaler.get_scale()
        ours.update(epoch)
        published.update(epoch)
        lower = min(trainer.scaler.get_scale(), loop.scaler.get_scale())
        if lower == scale:
            return
        for parameter, value in zip(trained, before, strict=True):
            parameter.data.copy_(value)
        trainer.optimizer.state.clear()
        loop.optimizer.state.clear()
        trainer.scaler, loop.scaler = _scaler(trainer, lower), _scaler(trainer, lower)


def _scaler(trainer: Trainer, scale: float) -> torch.amp.GradScaler:
    return torch.amp.GradScaler(trainer.base.device.type, scale, enabled=trainer.scaler.is_enabled())


def disagreement(apart: Mapping[str, float], dtype: str) -> str:
    """The first result that differs by more than rounding, in words; empty if none does.

    Args:
        apart: see :func:`differences`.
        dtype: the precision that the model computes in.
    """
    of_rollouts, of_gradients = TOLERANCES[dtype]
    for what, far in apart.items():
        tolerance = of_gradients if what in ("gradients", "parameters") else of_rollouts
        if not far <= tolerance:
            return (
                f"{what} of our trainer and of the published loop are {far:.2g} of their size apart (allowed in {dtype}: "
                f"{tolerance:g}): they do not compute the same, so their times say nothing"
            )
    return ""


def _inputs(trainer: Trainer, samples: Sequence[Sample], epoch: int) -> tuple[list[str], Tensor, list[Tensor]]:
    """Texts, start and noise of a micro-batch, as the trainer draws them."""
    config, base = trainer.config, trainer.base
    texts = [trainer.task.train[s.prompt].text for s in samples]
    noise = step_noise(base, samples, config.seed, epoch)
    start = starts(base, samples, config.sampling.same_latent, config.seed, epoch)
    return texts, start, [noise() for _ in range(config.sampling.steps)]


def _moments(optimizer: torch.optim.Optimizer, trained: Iterable[Tensor]) -> Tensor:
    """AdamW's first moments, a running average of the clipped gradients of all updates so far; 0 where there was none."""
    return _flat(optimizer.state[p].get("exp_avg", torch.zeros_like(p)) for p in trained)


def _flat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def _apart(own: Tensor, other: Tensor) -> float:
    """Mean absolute difference as a share of the other's mean absolute value; NaN where both are 0."""
    own, other = own.float(), other.float()
    return ((own - other).abs().mean() / other.abs().mean()).item()


def _rows(seconds: Mapping[str, Sequence[float]], images: int) -> list[Row]:
    """Mean seconds, mean ratios of the seconds round by round, and images per second.

    Args:
        seconds: ``rollouts ours`` and so on -> seconds of every round.
        images: how many an epoch has.
    """
    phases = {phase: [seconds[f"{phase} {side}"] for side in ("ours", "published")] for phase in PHASES}
    phases["epoch"] = [list(map(sum, zip(*sides, strict=True))) for sides in zip(*phases.values(), strict=True)]
    rows: list[Row] = []
    for phase, (own, other) in phases.items():
        ratios = [mine / theirs for mine, theirs in zip(own, other, strict=True)]
        rows.append((f"{phase}, seconds, ours", mean_interval(own)))
        rows.append((f"{phase}, seconds, published", mean_interval(other)))
        rows.append((f"{phase}, ratio ours / published", mean_interval(ratios)))
    for side, taken in zip(("ours", "published"), phases["epoch"], strict=True):
        rows.append((f"images per second, {side}", mean_interval([images / value for value in taken])))
    return rows
