"""The model alone: building it, whether rollouts and updates agree, and the pace of each pass."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from star.bench.gpu import machine
from star.bench.gpu.bench import PROMPTS, Bench, prompts
from star.bench.gpu.figures import (
    GIB,
    Figure,
    attempt,
    forget_peak,
    free,
    mean_of,
    median_seconds,
    peak,
    seconds,
)
from star.method.attention import KERNELS, default_kernel, install, may_have
from star.models.interface import Capture
from star.models.memory import GPU_OVERHEAD, needed
from star.models.sd3 import SD3
from star.training.rollout import MicroBatch, Sample, capture_for, sample
from star.training.trainer import Trainer

FLOW = ("method=flow_grpo",)
STAR = ("method=star",)
REDUCTIONS = {"image": FLOW, "image_weighted": STAR, "position": (*STAR, "method.reduction=position")}
"""Reduction of the ratio -> settings of a method that uses it; STAR's rollouts also read relevance."""

ONE_GROUP = ("train.groups=1", "train.updates_per_epoch=1")
STANDING = (*ONE_GROUP, "train.lr=1e-30", "train.weight_decay=0")
"""An epoch of one group whose update changes nothing."""

AGREEING = 2
"""Rollouts in the check that ratios are 1: few enough to fit in memory in float32, even if attention keeps its softmax."""


def build(bench: Bench) -> Iterator[Figure]:
    """The transformer built on the device, as all steps build theirs."""
    config = bench.config()
    started = time.perf_counter()
    pipeline = bench.pipeline(config.model.dtype)
    free()
    yield Figure("pipeline with thin text encoders, made on the device", time.perf_counter() - started, "s")
    yield Figure("parameters of the transformer", pipeline.transformer.num_parameters() / 1e6, "M")
    base = bench.base(config, pipeline)
    yield Figure("trained parameters", sum(p.numel() for p in base.trained.values()) / 1e6, "M")
    yield Figure("memory with adapters", peak(bench.device), "GiB")


def on_policy(bench: Bench) -> Iterator[Figure]:
    """How far an on-policy update's ratios are off 1, in every precision, for every kernel and each ratio of the ablation."""
    for dtype in ("bfloat16", "float16", "float32"):
        yield from attempt(dtype, partial(_agreement, bench, dtype))
        free()


def _agreement(bench: Bench, dtype: str) -> Iterator[Figure]:
    base = bench.base(bench.config(f"model.dtype={dtype}"))
    whole, kernels = bench.sizes.micro_batch, [kernel for kernel in KERNELS if may_have(bench.device.type, kernel, dtype)]
    cases = [(kernel, reduction, min(AGREEING, whole), "") for kernel in kernels for reduction in REDUCTIONS]
    if dtype != "float32":  # products of another size have other kernels, so a run's own size counts
        usual = default_kernel(bench.device.type, base.dtype)
        cases += [(usual, reduction, whole, ", a whole micro-batch") for reduction in ("image", "image_weighted")]
    for kernel, reduction, rows, size in cases:
        install(base.transformer, kernel)
        label, words = f"{dtype}, {kernel}, per {reduction}{size}", (*REDUCTIONS[reduction], f"model.dtype={dtype}")
        yield from attempt(label, partial(ratio_error, bench, base, label, words, rows))


def ratio_error(bench: Bench, base: SD3, label: str, words: Sequence[str], rows: int) -> Iterator[Figure]:
    """The largest ``|ratio - 1|`` of an on-policy update on ``rows`` rollouts, how wide they spread, and what a run allows.

    Only the last two trainable steps are trained: their std is the smallest, so that a difference weighs most.
    """
    fixed = (f"train.group_size={rows}", f"train.micro_batch={rows}", "train.ratio_tolerance=null")
    with bench.run(*STANDING, *fixed, *words) as config:
        trainer = Trainer(config, bench.task(), base)
        allowed, trainer.ratio_tolerance = trainer.ratio_tolerance, math.inf
        capture = config.relevance if config.method.name == "star" else None
        samples, steps = [Sample(0, index) for index in range(rows)], list(config.sampling.trainable)[-2:]
        trajectory = sample(base, samples, PROMPTS, config, steps, epoch=0, relevance=capture)
        trajectory.alike = None  # rows can be alike only up to a rollout's first stochastic step
        figures = trainer.update([MicroBatch(0, trajectory, advantages=torch.ones(rows))], 1, 0)
    yield Figure(f"{label}, largest |ratio - 1|", figures["ratio_error"])
    yield Figure(f"{label}, root mean square of its logarithm", math.sqrt(2 * figures["approx_kl"]))
    yield Figure(f"{label}, allowed", allowed)


def pace(bench: Bench) -> Iterator[Figure]:
    """Every pass of training by itself: seconds, images per second, share of the product ceiling, memory."""
    base = bench.base(bench.config())
    forward, both = _flops(bench, base)
    yield Figure("forward, of one row", forward / 1e12, "TFLOP")
    yield Figure("forward and backward, of one row", both / 1e12, "TFLOP")
    dtype = base.config.dtype
    ceiling = machine.product_ceiling(bench, dtype)
    yield Figure(f"product ceiling, {dtype}", ceiling / 1e12, "TFLOP/s")
    for size in bench.sizes.micro_batches:
        label = f"micro-batch {size}"
        passes = Passes(bench, base, size)
        yield from attempt(label, partial(_sampling, passes, label, forward / ceiling))
        for checkpointing in (False, True):
            of = f"{label}, checkpointing {'on' if checkpointing else 'off'}"
            yield from attempt(of, partial(_learning, passes, of, checkpointing, both / ceiling))
            free()


class Passes:
    """The passes of a training, one micro-batch each.

    Attributes:
        size: images per micro-batch.
        words: settings of an epoch of these images alone.
        config: all settings.
        rows: of the transformer's batch; with guidance twice the images.
    """

    def __init__(self, bench: Bench, base: SD3, size: int) -> None:
        self.bench, self.base, self.size = bench, base, size
        self.words = (*STAR, *ONE_GROUP, f"train.group_size={size}", f"train.micro_batch={size}")
        self.config = bench.config(*self.words)
        self.guidance = self.config.sampling.guidance
        self.rows = size if self.guidance == 1 else 2 * size
        self._x, self._texts = bench.latents(base, size), [prompt.text for prompt in prompts(size)]
        self._sigma = base.schedule(self.config.sampling.steps)[1]
        base.prepare(self._texts, self.guidance)  # which is not part of any pass

    def velocity(self) -> Tensor:
        """The model's velocity, (size, C, H, W)."""
        return self.base.velocity(self._x, self._sigma, self._texts, self.guidance)

    @torch.no_grad()
    def rollout(self, capture: Capture | None = None) -> None:
        """A step of a rollout, with relevance if there is a capture."""
        with self.base.sampling(), capture or nullcontext():
            self.velocity()
        if capture:
            capture.take()

    @torch.no_grad()
    def reference(self) -> None:
        """A forward pass without adapters, as for the KL penalty."""
        with self.base.reference():
            self.velocity()

    def learn(self) -> None:
        """Forward and backward; gradients are thrown away."""
        self.velocity().square().mean().backward()
        for parameter in self.base.trained.values():
            parameter.grad = None

    def capture(self) -> Capture:
        """A capture that reads relevance as configured."""
        return capture_for(self.base, prompts(self.size), self.config.relevance)

    def timed(self, action: Callable[[], None]) -> float:
        """The median seconds of a pass."""
        return median_seconds(action, self.bench.device, self.bench.sizes.warm, self.bench.sizes.repeats)


def _flops(bench: Bench, base: SD3) -> tuple[float, float]:
    """Floating-point operations in products, for one row: of a forward pass, and of forward and backward."""
    passes = Passes(bench, base, bench.sizes.micro_batch)
    counts = []
    for action in (passes.rollout, passes.learn):
        with FlopCounterMode(display=False) as counter:
            action()
        counts.append(counter.get_total_flops() / passes.rows)
    return counts[0], counts[1]


def _sampling(passes: Passes, label: str, ideal: float) -> Iterator[Figure]:
    """Passes without gradients; ``ideal``: seconds of a row at the ceiling."""
    for what, action in (("rollout step", passes.rollout), ("reference pass", passes.reference)):
        taken = passes.timed(action)
        yield Figure(f"{label}, {what}", taken, "s")
        yield Figure(f"{label}, {what}, of the product ceiling", 100 * ideal * passes.rows / taken, "%")
        if what == "rollout step":
            steps = passes.config.sampling.steps
            yield Figure(f"{label}, rollouts of {steps} steps", passes.size / (steps * taken), "images/s")


def _learning(passes: Passes, label: str, checkpointing: bool, ideal: float) -> Iterator[Figure]:
    """Forward and backward; what checkpointing recomputes does not count as useful work."""
    transformer, device = passes.base.transformer, passes.bench.device
    if checkpointing:
        transformer.enable_gradient_checkpointing()
    else:
        transformer.disable_gradient_checkpointing()
    try:
        forget_peak(device)
        yield Figure(f"{label}, estimated", _estimate(passes, checkpointing), "GiB")
        taken = passes.timed(passes.learn)
        yield Figure(f"{label}, forward and backward", taken, "s")
        yield Figure(f"{label}, of the product ceiling", 100 * ideal * passes.rows / taken, "%")
        yield Figure(f"{label}, peak of tensors", peak(device), "GiB")
        whole = taken + passes.timed(passes.reference)
        trained = passes.config.sampling.trained
        yield Figure(f"{label}, updates on {trained} steps with KL", passes.size / (trained * whole), "images/s")
    finally:
        transformer.disable_gradient_checkpointing()


def _estimate(passes: Passes, checkpointing: bool) -> float:
    """``star doctor``'s estimate for tensors only, in GiB: without CUDA's overhead, with the bench's thin text encoders."""
    config = passes.bench.config(*passes.words, f"model.gradient_checkpointing={str(checkpointing).lower()}")
    parts = (passes.base.pipeline.vae, *passes.base.encoders)
    others = sum(tensor.nbytes for part in parts for tensor in part.parameters())
    return (needed(config, passes.bench.sizes.transformer, others).gpu - GPU_OVERHEAD) / GIB


def capture(bench: Bench) -> Iterator[Figure]:
    """What reading relevance costs: rollout steps with and without it, alternating."""
    base = bench.base(bench.config())
    passes = Passes(bench, base, bench.sizes.micro_batch)
    watching = passes.capture()
    actions: dict[str, Callable[[], None]] = {
        "without relevance": passes.rollout,
        "with relevance": partial(passes.rollout, watching),
    }
    taken: dict[str, list[float]] = {name: [] for name in actions}
    for pair in range(-bench.sizes.warm, bench.sizes.pairs):
        for name in sorted(actions, reverse=pair % 2 == 0):  # who goes first alternates
            value = seconds(actions[name], bench.device)
            if pair >= 0:
                taken[name].append(value)
    for name, values in taken.items():
        yield mean_of(f"rollout step {name}", values, "s")
    plain, watched = taken.values()
    yield mean_of("with relevance / without", [one / other for one, other in zip(watched, plain, strict=True)])
