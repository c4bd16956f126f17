"""The dry run: the full-size transformer with random weights, one rollout and one update, on whatever device there is."""

import math
import os
import platform
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from star import config as settings
from star.bench.gpu.figures import GIB, forget_peak, peak
from star.bench.reddest import Reddest
from star.bench.speed import fill_adapters
from star.common import markdown
from star.common.errors import UserError
from star.common.files import check_file, write_text
from star.common.machine import on_gpu, versions
from star.common.progress import bar
from star.config import Config
from star.models.interface import Capture
from star.models.memory import needed
from star.models.sd3 import SD3
from star.models.shapes import autoencoder_of, random_pipeline, shape_of
from star.models.sources import source
from star.records.code import commit
from star.records.folder import own_results
from star.tasks import Prompt, Task
from star.training import guards
from star.training.credit import star_weights
from star.training.machine import placed
from star.training.rollout import MicroBatch, Sample, capture_for, sample
from star.training.trainer import Trainer

# The full method, two denoising steps of which the first is trained, and one update.
FIXED = (
    "method=star",
    "sampling.steps=2",
    "sampling.window=0",
    "sampling.same_latent=false",  # else the one trained step is computed for one row
    "train.groups=1",
    "train.updates_per_epoch=1",
)
PROMPT = Prompt("a photo of a circle", ((13, 19),))
SECONDS = 10.0  # for which rollout steps are repeated, at least once
GOAL = 0.01


@dataclass
class Measured:
    """Seconds and peak memory (GiB) of a phase; on a CPU the peak is that of the process up to the end of the phase."""

    seconds: float
    memory: float


@dataclass
class DryRun:
    """What a dry run found.

    Attributes:
        config: the settings that it ran with.
        wanted: the settings that were asked for; the estimate of an epoch is for these.
        device: its name.
        parameters, trained: how many parameters there are, and how many are trained.
        plain, captured: seconds of a rollout step without maps and with them.
        maps: seconds of a rollout step that the maps take.
        rollout: two steps and decoding.
        update: forward and backward pass of a trained step and the optimizer's step.
        ratio_error: largest distance of a ratio from 1 in the first update, on the step with the largest noise.
        tolerance: the largest ``ratio_error`` with which a run goes on.
    """

    config: Config
    wanted: Config
    device: str
    parameters: int
    trained: int
    plain: float
    captured: float
    maps: float
    rollout: Measured
    update: Measured
    ratio_error: float
    tolerance: float

    @property
    def share(self) -> float:
        """The maps' share of the time of a rollout step."""
        return self.maps / self.captured

    @property
    def epoch_seconds(self) -> float:
        """Estimated seconds of an epoch with the ``wanted`` settings on one such device, without computing rewards."""
        train, sampling = self.wanted.train, self.wanted.sampling
        batches = train.rollouts / self.config.train.micro_batch
        decoding = max(0.0, self.rollout.seconds - self.plain - self.captured)
        return batches * (sampling.steps * self.captured + decoding + sampling.trained * self.update.seconds)


def dry_run(overrides: Sequence[str]) -> DryRun:
    """Build the configured model's transformer at its true size, with random weights, and measure a rollout and an update.

    Args:
        overrides: those of the planned run, e.g. ``scale=paper preset=gpu1``.

    Raises:
        UserError: a setting that cannot be used, or a model of an unknown shape.
    """
    wanted = settings.load(overrides, own_folder=False)
    if wanted.model.kind:
        raise UserError(f"model.kind={wanted.model.kind}: the dry run builds SD3's transformer; leave it out, or train a step")
    config = _settings(overrides, wanted)
    check_file(_table(config), "the table")
    with guards.limits(config), bar("dry run: building the transformer", 4) as display:

        def done(then: str) -> None:
            display.advance()
            display.update(f"dry run: {then}")

        device = _device()
        base = _random_model(config, device)
        fill_adapters(base, config.seed)  # at their start they do nothing, and an error of the ratio by them would not show
        trainer = Trainer(config, Task("dry run", Reddest(), lambda: [PROMPT], lambda: [PROMPT]), base)
        # How far the ratio is off in the first update is reported, and does not stop the dry run.
        tolerance, trainer.ratio_tolerance = trainer.ratio_tolerance, math.inf
        done("rollout steps")
        plain, captured, maps = _rollout_steps(trainer, base)
        done("a rollout of two steps")
        with _measuring(device) as rollout:
            batch = _rollout(trainer)
        done("an update")
        assert batch.trajectory.relevance is not None
        batch.weights = star_weights(config.method, batch.trajectory.relevance)
        figures = trainer.update([batch], 1, 0)  # the only one on policy; it also compiles and allocates
        with _measuring(device) as update:
            trainer.update([batch], 1, 0)
        done("done")
    return DryRun(
        config=config,
        wanted=wanted,
        device=_named(device),
        parameters=sum(p.numel() for p in base.transformer.parameters()),
        trained=sum(p.numel() for p in base.trained.values()),
        plain=plain,
        captured=captured,
        maps=maps,
        rollout=rollout,
        update=update,
        ratio_error=figures["ratio_error"],
        tolerance=tolerance,
    )


def _random_model(config: Config, device: torch.device) -> SD3:
    """A model of the configured shape with random weights."""
    model = source(config.model)
    shape, autoencoder = shape_of(model), autoencoder_of(model)
    torch.manual_seed(config.seed)
    pipeline = random_pipeline(shape, getattr(torch, config.model.dtype), autoencoder)
    return SD3(config.model, device, config.seed, pipeline)


def _rollout(trainer: Trainer) -> MicroBatch:
    """A micro-batch of rollouts, all of which did well."""
    config = trainer.config
    samples = [Sample(0, index) for index in range(config.train.micro_batch)]
    trajectory = sample(trainer.base, samples, [PROMPT], config, steps=[0], epoch=0, relevance=config.relevance)
    return MicroBatch(0, trajectory, advantages=torch.ones(len(samples)))


def report(run: DryRun) -> tuple[Path, list[tuple[str, str]]]:
    """Write a report to ``runs/results/<scale>/dry_run.md``; return the file and the rows of its table."""
    rows = _rows(run)
    load = f"load {os.getloadavg()[0]:.1f} on " if hasattr(os, "getloadavg") else ""  # Windows has none
    system = f"{platform.system()} {platform.machine()}; Python {platform.python_version()}"
    machine = f"{run.device}; {load}{os.cpu_count()} cores; {system}"
    lines = [
        "# Dry run",
        "",
        "Random weights at the model's true size: it shows that the code runs, how long it takes and what memory it needs,",
        "and nothing about quality. `star doctor scale=paper dry_run=true` writes this file.",
        "",
        f"* machine: {machine}",
        f"* versions: {versions()}",
        f"* commit: {commit()}",
        "",
        *markdown.table(["what", "measured"], rows, numbers=2),
    ]
    file = _table(run.config)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, "\n".join(lines) + "\n")
    return file, rows


def _table(config: Config) -> Path:
    return own_results(config.scale) / "dry_run.md"


def _rows(run: DryRun) -> list[tuple[str, str]]:
    config, wanted = run.config, run.wanted
    memory = "peak of the GPU" if on_gpu() else "peak of the process so far"
    goes = "goes on" if run.ratio_error <= run.tolerance else "STOPS"
    allowed = f"a run of STAR {goes}: in {config.model.dtype} up to {run.tolerance:.1e} is rounding; later steps weigh it more"
    met = "goal met" if run.share <= GOAL else "above the goal"
    as_run = replace(wanted, model=placed(wanted, _device(), 1))  # without a GPU, offload=null is false: an upper bound
    estimate = needed(as_run, shape_of(source(wanted.model))).gpu / GIB
    trained = f"LoRA, rank {config.model.lora_rank}" if config.model.parameters == "lora" else "all"
    kl = "with" if config.train.beta else "without"
    epoch = wanted.train.rollouts
    return [
        ("method", "star, whatever the settings say"),
        ("model", f"the shape of {config.model.path or 'the mini base'}, random weights, {config.model.dtype}"),
        ("parameters", f"{run.parameters / 1e6:,.0f} M, adapters included"),
        ("trained", f"{run.trained / 1e6:.3f} M parameters ({trained}), float32"),
        ("picture", f"{config.model.resolution} px, guidance {config.sampling.guidance:g}"),
        ("rollouts at once", f"{config.train.micro_batch} (the settings say {wanted.train.micro_batch})"),
        ("gradient checkpointing", "on" if config.model.gradient_checkpointing else "off"),
        ("rollout step without maps", f"{run.plain:.3f} s"),
        ("rollout step with maps", f"{run.captured:.3f} s"),
        ("maps within it", f"{run.maps:.4f} s, {100 * run.share:.2f} % (goal: at most {100 * GOAL:g} %, {met})"),
        ("rollout of 2 steps, decoded", f"{run.rollout.seconds:.2f} s, {run.rollout.memory:.2f} GiB {memory}"),
        (f"update on 1 step, {kl} KL", f"{run.update.seconds:.2f} s, {run.update.memory:.2f} GiB {memory}"),
        (
            "estimated for one GPU",
            f"{estimate:.1f} GiB at most, for {wanted.train.micro_batch} rollouts at once, {epoch} an epoch",
        ),
        ("first update on policy", f"ratio off 1 by {run.ratio_error:.1e} ({allowed})"),
        (f"an epoch of {epoch} images at this pace", f"{run.epoch_seconds / 3600:.2f} h on one such device, without judging"),
    ]


def _settings(overrides: Sequence[str], wanted: Config) -> Config:
    """The settings of the dry run; a CPU, on which nobody trains at this size, takes one rollout at a time."""
    size = wanted.train.micro_batch if on_gpu() else 1
    # In float16 a CPU takes many times as long.
    on_cpu = [] if on_gpu() else ["model.gradient_checkpointing=true", "model.dtype=bfloat16"]
    config = settings.load([*overrides, *FIXED, *on_cpu, f"train.micro_batch={size}", f"train.group_size={max(2, size)}"])
    config.rewards.others.clear()  # nothing is judged, and their weights need not be here
    return config


def _device() -> torch.device:
    return torch.device("cuda" if on_gpu() else "cpu")


def _rollout_steps(trainer: Trainer, base: SD3) -> tuple[float, float, float]:
    """Median seconds of a rollout step without maps, with maps, and of the maps alone."""
    config = trainer.config
    texts = [PROMPT.text] * config.train.micro_batch
    watching = capture_for(base, [PROMPT] * len(texts), config.relevance)
    # A clock within a compiled block has it compiled anew in every pass.
    maps = [] if config.model.compile else _timed(watching)
    x = torch.randn(len(texts), *base.latent_shape, device=base.device)

    @torch.no_grad()
    def step(capture: Capture | None) -> float:
        with _measuring(base.device) as taken, capture or nullcontext():
            base.velocity(x, trainer.schedule[0], texts, config.sampling.guidance)
        return taken.seconds

    for capture in (watching, None):  # warm-up
        step(capture)
    maps.clear()
    plain: list[float] = []
    captured: list[float] = []
    started = time.monotonic()
    while not plain or time.monotonic() - started < SECONDS:
        plain.append(step(None))
        captured.append(step(watching))
    without, within = statistics.median(plain), statistics.median(captured)
    return without, within, sum(maps) / len(captured) if maps else max(0.0, within - without)


def _timed(capture: Any) -> list[float]:
    """The seconds of every computation of a :class:`star.method.attention.Relevance` from now on."""
    compute, seconds = capture._relevance, []

    def timed(*given: Tensor) -> Tensor:
        _wait()
        started = time.perf_counter()
        relevance: Tensor = compute(*given)
        _wait()
        seconds.append(time.perf_counter() - started)
        return relevance

    capture._relevance = timed
    return seconds


@contextmanager
def _measuring(device: torch.device) -> Iterator[Measured]:
    """Measures what is done inside; the result is filled in at the end."""
    result = Measured(0.0, 0.0)
    forget_peak(device)
    _wait()
    started = time.perf_counter()
    yield result
    _wait()
    result.seconds = time.perf_counter() - started
    result.memory = peak(device)


def _wait() -> None:
    if on_gpu():
        torch.cuda.synchronize()


def _named(device: torch.device) -> str:
    return torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
