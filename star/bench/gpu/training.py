"""Training as a whole: against the published loop, phase by phase, interrupted and resumed, and with sharded weights."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from star.bench import speed
from star.bench.gpu.bench import Bench, put_true_encoders
from star.bench.gpu.figures import NO_MEMORY, Figure, attempt, forget_peak, free, peak, seconds
from star.bench.gpu.model import ONE_GROUP, Passes
from star.common.files import sha256
from star.config import Config
from star.models.sd3 import SD3, add_lora
from star.models.sharding import shard
from star.models.text import TextCache
from star.tasks import Task
from star.training.checkpoint import digest
from star.training.machine import compute_deterministically
from star.training.rollout import plan
from star.training.trainer import Trainer

Result = TypeVar("Result")


def published(bench: Bench) -> Iterator[Figure]:
    """Epochs of one micro-batch, with KL, alternating between our trainer and Flow-GRPO's published loop.

    All steps but the last are trained. Where the two do not fit without gradient checkpointing, both use it.
    """
    for checkpointing in (False, True):
        figures = list(attempt("published", partial(_published, bench, checkpointing)))
        if NO_MEMORY not in [figure.value for figure in figures]:
            break
        yield Figure(f"with{'' if checkpointing else 'out'} gradient checkpointing", NO_MEMORY)
        free()
    yield from figures


def _published(bench: Bench, checkpointing: bool) -> Iterator[Figure]:
    size = bench.sizes.micro_batch
    words = (
        "method=flow_grpo",
        "task=geneval",
        "train.schedule=constant",
        *ONE_GROUP,
        f"train.group_size={size}",
        f"train.micro_batch={size}",
        f"model.gradient_checkpointing={str(checkpointing).lower()}",
    )
    with bench.run(*words) as config:
        base = bench.base(config)
        # The same weights: they were rounded to half precision, so converting them to float32 does not change them.
        pipeline = bench.pipeline(config.model.dtype)
        add_lora(pipeline.transformer.float().requires_grad_(False), config.model)
        told: list[str] = []
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")  # as published
        try:
            rows = speed.compare(config, base, pipeline, bench.task(), bench.sizes.published, told.append)
        finally:
            torch.set_float32_matmul_precision(before)
    yield Figure("gradient checkpointing", "on" if checkpointing else "off")
    yield Figure("the same results up to rounding", "; ".join(told) or "yes")
    for what, estimate in rows:
        yield Figure(what, estimate.value, _unit(what), *(estimate.interval or ()))


def _unit(what: str) -> str:
    if what.startswith("images per second"):
        return "images/s"
    return "s" if ", seconds, " in what else ""


class Phased(Trainer):
    """A trainer that keeps the seconds of every phase of its latest epoch."""

    def __init__(self, config: Config, task: Task, base: SD3) -> None:
        super().__init__(config, task, base)
        self.phases: dict[str, float] = {}

    def rollouts(self, *given: Any) -> Any:
        """Sampling, decoding included."""
        return self._timed("rollouts", partial(super().rollouts, *given))

    def score(self, *given: Any) -> Any:
        """Waiting for verdicts."""
        return self._timed("score", partial(super().score, *given))

    def allocate(self, *given: Any) -> None:
        """Maps to weights."""
        self._timed("allocate", partial(super().allocate, *given))

    def update(self, *given: Any) -> Any:
        """Learning."""
        return self._timed("update", partial(super().update, *given))

    def _timed(self, name: str, action: Callable[[], Result]) -> Result:
        found: list[Result] = []
        self.phases[name] = seconds(lambda: found.append(action()), self.base.device)
        return found[0]


def epoch(bench: Bench) -> Iterator[Figure]:
    """An epoch of STAR with text encoders of the given sizes, offloaded to main memory or kept on the device."""
    groups, group, size = bench.sizes.epoch
    words = ("method=star", f"train.groups={groups}", f"train.group_size={group}", f"train.micro_batch={size}")
    for number, offload in enumerate((True, False)):
        label = f"offload {'on' if offload else 'off'}"
        yield from attempt(label, partial(_epoch, bench, label, (*words, f"model.offload={str(offload).lower()}"), not number))
        free()


def _epoch(bench: Bench, label: str, words: tuple[str, ...], first: bool) -> Iterator[Figure]:
    with bench.run(*words) as config:
        pipeline = bench.pipeline(config.model.dtype)
        put_true_encoders(pipeline, bench.sizes, bench.device, getattr(torch, config.model.dtype))
        encoders = (pipeline.text_encoder, pipeline.text_encoder_2, pipeline.text_encoder_3)
        if first:
            yield Figure("parameters of the text encoders", sum(e.num_parameters() for e in encoders) / 1e6, "M")
        base = bench.base(config, pipeline)
        trainer = Phased(config, bench.task(), base)
        if first:
            trainer.epoch(0)  # the first epoch of a process takes longer, which is not of interest here
        rest = torch.device("cpu") if config.model.offload else bench.device
        base.encode = TextCache(base.encoded, base.encoders, bench.device, rest)  # an empty one, so that texts are encoded
        forget_peak(bench.device)
        train = config.train
        samples = plan(len(trainer.task.train), train.groups, train.group_size, config.seed, 1)
        wanted = [trainer.task.train[s.prompt].text for s in samples]
        encoding = seconds(partial(base.prepare, wanted, config.sampling.guidance), bench.device)
        figures = trainer.epoch(1)
    yield Figure(f"{label}, encoding {len(set(wanted)) + (config.sampling.guidance != 1)} texts", encoding, "s")
    for name, taken in trainer.phases.items():
        yield Figure(f"{label}, {name}", taken, "s")
    whole = encoding + figures["sampling_seconds"] + figures["update_seconds"]
    yield Figure(f"{label}, epoch of {len(samples)} images", whole, "s")
    yield Figure(f"{label}, epoch", len(samples) / whole, "images/s")
    yield Figure(f"{label}, peak of tensors", peak(bench.device), "GiB")


class Cut(Exception):
    """A run is cut off here."""


class CutOff(Trainer):
    """A trainer that is cut off when its second epoch begins."""

    def epoch(self, epoch: int, tick: Callable[[], None] = lambda: None) -> dict:
        """Run the first epoch, and no other."""
        if epoch:
            raise Cut
        return super().epoch(epoch, tick)


def resume(bench: Bench) -> Iterator[Figure]:
    """Whether two epochs give the same weights if resumed in between, with default and with deterministic kernels."""
    base = bench.base(bench.config())
    initial = {name: parameter.detach().clone() for name, parameter in base.trained.items()}
    taken: dict[str, float] = {}
    for deterministic in (False, True):
        label = "deterministic" if deterministic else "default"
        with only_deterministic() if deterministic else nullcontext():
            yield from attempt(label, partial(_resumed, bench, base, initial, label, deterministic, taken))
    if len(taken) == 2:
        yield Figure("deterministic / default", taken["deterministic"] / taken["default"])


@contextmanager
def only_deterministic() -> Iterator[None]:
    """Inside, only kernels with reproducible results are used, as with ``train.deterministic``; afterwards any."""
    compute_deterministically()
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def _resumed(
    bench: Bench, base: SD3, initial: dict[str, Tensor], label: str, deterministic: bool, taken: dict[str, float]
) -> Iterator[Figure]:
    size = min(4, bench.sizes.micro_batch)
    words = (
        *("method=star", "train.epochs=2", "train.checkpoint_every=1", "train.groups=2", f"train.group_size={size}"),
        *(f"train.micro_batch={size}", f"train.deterministic={str(deterministic).lower()}"),
        *("sampling.steps=4", "sampling.window=2", "sampling.window_range=[0,3]", "evaluation.every=0"),
    )
    digests = []
    for _ in range(2):
        with bench.run(*words) as config:
            _put(base, initial)
            summary = Trainer(config, bench.task(), base).run()
            taken[label] = min(summary["seconds"], taken.get(label, summary["seconds"]))
            digests.append(_digest(config))
    yield Figure(f"{label}, two epochs", taken[label], "s")
    yield Figure(f"{label}, two runs", _equal(*digests))
    with bench.run(*words) as config:
        _put(base, initial)
        try:
            CutOff(config, bench.task(), base).run()
        except Cut:
            _put(base, {name: torch.zeros_like(value) for name, value in initial.items()})
        Trainer(config, bench.task(), base).run()
        digests.append(_digest(config))
    yield Figure(f"{label}, a run and one that was cut off", _equal(digests[0], digests[2]))


def _put(base: SD3, values: dict[str, Tensor]) -> None:
    for name, value in values.items():
        base.trained[name].data.copy_(value)


def _digest(config: Config) -> str:
    return sha256(Path(config.run, "final", "trained.safetensors"))


def _equal(one: str, other: str) -> str:
    return f"the same weights, {one[:12]}" if one == other else f"other weights, {one[:12]} and {other[:12]}"


def sharded(bench: Bench) -> Iterator[Figure]:
    """Shard every block with FSDP2 over a single process, which gathers nothing: only the time may change."""
    base = bench.base(bench.config())
    passes = Passes(bench, base, bench.sizes.micro_batch)
    yield from _paced(passes, "whole")
    with only_deterministic():
        whole, again = _results(passes), _results(passes)
    yield from _compared("two passes of the whole", whole, again)
    backend = "nccl" if bench.device.type == "cuda" else "gloo"
    distributed.init_process_group(backend, store=distributed.HashStore(), rank=0, world_size=1)
    try:
        distributed.all_reduce(torch.zeros(1, device=bench.device))  # otherwise the backend would not be tried at all
        started = time.perf_counter()
        shard(base.transformer, base.trained.values(), bench.device)
        free()
        yield Figure("sharding", time.perf_counter() - started, "s")
        yield from _paced(passes, "sharded")
        with only_deterministic():
            yield from _compared("whole and sharded", whole, _results(passes))
    finally:
        distributed.destroy_process_group()


def _paced(passes: Passes, label: str) -> Iterator[Figure]:
    forget_peak(passes.bench.device)
    yield Figure(f"{label}, rollout step", passes.timed(passes.rollout), "s")
    yield Figure(f"{label}, forward and backward", passes.timed(passes.learn), "s")
    yield Figure(f"{label}, peak of tensors", peak(passes.bench.device), "GiB")


def _results(passes: Passes) -> dict[str, str]:
    """Digests of the velocity of a rollout step and of the gradients of a backward pass."""
    with torch.no_grad():
        velocity = passes.velocity()
    passes.velocity().square().mean().backward()
    gradients = {name: p.grad for name, p in passes.base.trained.items() if p.grad is not None}
    for parameter in passes.base.trained.values():
        parameter.grad = None
    return {"velocity": digest({"v": velocity}), "gradients": digest(gradients)}


def _compared(label: str, one: dict[str, str], other: dict[str, str]) -> Iterator[Figure]:
    for name, found in one.items():
        yield Figure(f"{label}, {name}", "equal to the bit" if found == other[name] else "not equal")
