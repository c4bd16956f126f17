"""Rollouts: which prompts an epoch samples, and the stochastic trajectories of a micro-batch with their relevance."""

from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import accumulate, groupby

import torch
from torch import Tensor

from star.common.devices import sent
from star.common.noise import generator, normal
from star.config import Config, RelevanceConfig, SamplingConfig
from star.method.objective import log_prob_map
from star.method.sampling import Transition, transition
from star.models.interface import BaseModel, Capture
from star.tasks import Prompt
from star.training import guards
from star.training.judging import Verdicts


@dataclass(frozen=True)
class Sample:
    """One image to draw: rollout ``index`` of the training prompt number ``prompt``."""

    prompt: int
    index: int


@dataclass
class Trajectory:
    """What one micro-batch leaves behind for the update.

    Attributes:
        samples: B samples.
        steps: the trained steps, ascending.
        latents: (len(steps) + 1, B, C, H, W) float32: before each trained step, and after the last.
        log_probs: under the policy that sampled, (len(steps), B) or (len(steps), B, H, W).
        means: of its transitions, (len(steps), B, C, H, W); None if they were not asked for.
        relevance: (len(steps), B, h, w), or None if it was not captured.
        images: uint8 (B, H, W, 3), on the CPU.
        alike: lengths of the runs of rows that are equal before the first trained step, see :func:`alike_runs`; None if none.
    """

    samples: list[Sample]
    steps: list[int]
    latents: Tensor
    log_probs: Tensor
    means: Tensor | None
    relevance: Tensor | None
    images: Tensor
    alike: list[int] | None = None


@dataclass
class MicroBatch:
    """Rollouts that go through the model at once, on their way from sampling to update.

    Attributes:
        number: its place among the micro-batches of all processes; sample ``i`` of it is the epoch's ``number B + i``.
        trajectory: of its B rollouts.
        verdicts: name of a reward -> a function that waits for its verdicts on the images.
        advantages: (B,), once all rewards are known.
        weights: (steps, B, h, w), once they are allocated; None where they are 1 everywhere.
    """

    number: int
    trajectory: Trajectory
    verdicts: dict[str, Verdicts] = field(default_factory=dict)
    advantages: Tensor = field(default_factory=lambda: torch.zeros(0))
    weights: Tensor | None = None

    @property
    def span(self) -> slice:
        """Where its samples stand among those of the epoch."""
        size = len(self.trajectory.samples)
        return slice(self.number * size, (self.number + 1) * size)


def plan(prompts: int, groups: int, group_size: int, seed: int, epoch: int) -> list[Sample]:
    """The samples of an epoch, group by group: distinct prompts, drawn anew each epoch.

    If there are fewer prompts than groups, prompts come again with higher indices, and so with other noise.
    """
    chosen: list[tuple[int, int]] = []
    source = generator(seed, "prompts", epoch)
    while len(chosen) < groups:
        first = len(chosen) // prompts * group_size
        chosen += [(prompt, first) for prompt in torch.randperm(prompts, generator=source).tolist()]
    return [Sample(prompt, first + index) for prompt, first in chosen[:groups] for index in range(group_size)]


def trained_steps(sampling: SamplingConfig, seed: int, epoch: int) -> list[int]:
    """The stochastic steps that are trained: a window drawn for the epoch, or all but the last.

    With a window the other steps are deterministic. Without one every step is stochastic, even the last, which is
    never trained (its std is almost 0).
    """
    steps = sampling.trainable
    if not sampling.window:
        return list(steps)
    places = len(steps) - sampling.trained + 1
    start = int(torch.randint(places, (), generator=generator(seed, "window", epoch)))
    return list(steps[start : start + sampling.trained])


@dataclass(frozen=True)
class Step:
    """One step of a denoising, from latents ``x`` (B, C, H, W) to the ``following`` ones.

    Attributes:
        index: of the step.
        kind: ``sde``, ``cps`` or ``ode``.
        x, following: latents before and after, float32.
        transition: the distribution that ``following`` was drawn from.
        relevance: (B, h, w), with ``per_block`` (blocks, B, h, w); None where it was not captured.
    """

    index: int
    kind: str
    x: Tensor
    transition: Transition
    following: Tensor
    relevance: Tensor | None


def alike_runs(samples: Sequence[Sample], same_latent: bool) -> list[int] | None:
    """Lengths of the runs of rows with one text and starting noise: the model sees one row of each until noise parts them.

    They add up to the number of samples. None if every run is of one row.
    """
    if not same_latent:
        return None
    lengths = [len(list(run)) for _, run in groupby(samples, key=lambda s: s.prompt)]
    return lengths if len(lengths) < len(samples) else None


def velocity(
    base: BaseModel, x: Tensor, sigma: Tensor, texts: Sequence[str], guidance: float, alike: Sequence[int] | None = None
) -> Tensor:
    """:meth:`BaseModel.velocity`, computed once for each run of rows that are alike."""
    if alike is None:
        return base.velocity(x, sigma, texts, guidance)
    first = _first(alike)
    rows = torch.stack([x[row] for row in first])  # a list as the index would be copied to the GPU, and waited for
    return _spread(base.velocity(rows, sigma, [texts[row] for row in first], guidance), alike)


def _first(alike: Sequence[int]) -> list[int]:
    """The first row of every run."""
    return [0, *accumulate(alike)][:-1]


def _spread(rows: Tensor, alike: Sequence[int]) -> Tensor:
    """One row for each run -> all rows; joins views, so that unlike with indexing on a GPU the gradient is a plain sum."""
    return torch.cat([row.expand(length, *row.shape[1:]) for row, length in zip(rows.split(1), alike, strict=True)])


@torch.no_grad()
def denoise(
    base: BaseModel,
    x: Tensor,
    texts: Sequence[str],
    guidance: float,
    kinds: Sequence[str],
    noise_level: float = 0.0,
    noise: Callable[[], Tensor] | None = None,
    capture: Capture | None = None,
    captured: Container[int] | None = None,
    per_block: bool = False,
    alike: Sequence[int] | None = None,
) -> Iterator[Step]:
    """The one denoising loop: rollouts, evaluations, pictures and measurements all go through it, step by step.

    Args:
        base: the model.
        x: where it starts, (B, C, H, W) float32 on the model's device.
        texts: B prompts.
        guidance: classifier-free guidance scale.
        kinds: the kind of each step.
        noise_level: of the stochastic ones.
        noise: draws (B, C, H, W) for a step, and is called at every one; None takes the mean of each transition.
        capture: reads relevance.
        captured: the steps at which it does; by default all.
        per_block: whether relevance is given per block.
        alike: lengths of the runs of rows that start alike, see :func:`alike_runs`.

    Raises:
        RunStopped: at the end, if a velocity was not finite; what was made with it must not be used.
    """
    finite: list[Tensor] = []
    schedule = base.schedule(len(kinds))
    with base.sampling():
        for index, kind in enumerate(kinds):
            looks = capture if captured is None or index in captured else None
            if looks and alike:
                looks = looks.of(_first(alike))
            with looks or nullcontext():
                v = velocity(base, x, schedule[index], texts, guidance, alike)
            finite.append(v.isfinite().all())
            relevance = looks.take(per_block) if looks else None
            if relevance is not None and alike:
                relevance = _spread(relevance.transpose(0, -3), alike).transpose(0, -3)
            moved = transition(x, v, schedule, index, kind, noise_level)
            following = moved.mean if noise is None else moved.mean + moved.std * noise()
            yield Step(index, kind, x, moved, following, relevance)
            x = following
            if kind != "ode" and noise is not None:
                alike = None
    guards.check_velocities(finite)  # once, since reading from a GPU means waiting for it


@torch.no_grad()
def sample(
    base: BaseModel,
    samples: Sequence[Sample],
    prompts: Sequence[Prompt],
    config: Config,
    steps: Sequence[int],
    epoch: int,
    relevance: RelevanceConfig | None = None,
    noise: Callable[[], Tensor] | None = None,
) -> Trajectory:
    """Draw one micro-batch.

    Noise is keyed by (seed, epoch, prompt, sample); relevance is captured at the trained steps, from the policy that samples.

    Args:
        base: the model.
        samples: B samples.
        prompts: all training prompts; samples point into them.
        config: all settings.
        steps: the trained steps, see :func:`trained_steps`.
        epoch: of the noise.
        relevance: which blocks and columns; None to capture none.
        noise: draws (B, C, H, W) for each step in turn; by default the samples' own, see :func:`step_noise`.
    """
    sampling, drawn = config.sampling, [prompts[s.prompt] for s in samples]
    x = starts(base, samples, sampling.same_latent, config.seed, epoch)
    capture = None if relevance is None else capture_for(base, drawn, relevance)
    # Every sample draws noise for every step, so that a step's noise does not depend on where the window lies.
    noise = noise or step_noise(base, samples, config.seed, epoch)
    kinds = [sampling.kind if step in steps or not sampling.window else "ode" for step in range(sampling.steps)]

    texts, runs = [prompt.text for prompt in drawn], alike_runs(samples, sampling.same_latent)
    latents, log_probs, means, maps = [x], [], [], []
    for step in denoise(base, x, texts, sampling.guidance, kinds, sampling.noise_level, noise, capture, steps, alike=runs):
        x = step.following
        if step.index in steps:
            log_probs.append(log_prob_map(x, step.transition.mean, step.transition.std, step.kind, config.method.reduction))
            means += [step.transition.mean] if config.keep_means else []
            latents.append(x)
            maps += [] if step.relevance is None else [step.relevance]
        elif not log_probs:
            latents = [x]
    return Trajectory(
        samples=list(samples),
        steps=list(steps),
        latents=torch.stack(latents),
        log_probs=torch.stack(log_probs),
        means=torch.stack(means) if config.keep_means else None,
        relevance=torch.stack(maps) if capture else None,
        images=base.decode(x).cpu(),
        alike=runs,
    )


def capture_for(base: BaseModel, prompts: Sequence[Prompt], relevance: RelevanceConfig) -> Capture:
    """What reads the relevance of a batch made from these prompts, of their core words."""
    mask = base.core_columns([p.text for p in prompts], [p.spans for p in prompts], relevance.columns)
    return base.relevance(relevance, mask)


@torch.no_grad()
def generate(
    base: BaseModel, texts: Sequence[str], keys: Sequence[tuple[int | str, ...]], steps: int, guidance: float
) -> Tensor:
    """Images for evaluation, uint8 (B, H, W, 3) on the CPU: the deterministic flow from noise with the given keys."""
    x = sent(torch.stack([normal(base.latent_shape, *key) for key in keys]), base.device)
    for step in denoise(base, x, texts, guidance, ["ode"] * steps):
        x = step.following
    return base.decode(x).cpu()


def starts(base: BaseModel, samples: Sequence[Sample], same_latent: bool, seed: int, epoch: int) -> Tensor:
    """The samples' starting noise, (B, C, H, W) float32 on the device; with ``same_latent`` those of a prompt share it."""
    indices = [0 if same_latent else s.index for s in samples]
    rows = [
        normal(base.latent_shape, seed, epoch, "start", s.prompt, index) for s, index in zip(samples, indices, strict=True)
    ]
    return sent(torch.stack(rows), base.device)


def step_noise(base: BaseModel, samples: Sequence[Sample], seed: int, epoch: int) -> Callable[[], Tensor]:
    """A function that draws the noise of an epoch's samples for one step after the other, see :func:`keyed_noise`."""
    return keyed_noise(base, [(seed, epoch, "steps", s.prompt, s.index) for s in samples])


def keyed_noise(base: BaseModel, keys: Sequence[tuple[int | str, ...]]) -> Callable[[], Tensor]:
    """A function that draws the noise of the next step for samples with the given keys, (B, C, H, W) on the device."""
    sources = [generator(*key) for key in keys]

    def draw() -> Tensor:
        # The next is drawn while the GPU computes.
        return sent(torch.stack([torch.randn(base.latent_shape, generator=source) for source in sources]), base.device)

    return draw


def diversity(rows: Tensor, groups: Sequence[int]) -> float:
    """Mean over groups of the mean distance between two images of a group (0 for a group of one image).

    The distance is the root mean square difference of pixels in [0, 1] at an eighth of the size.

    Args:
        rows: (n, pixels), the :func:`thumbnails` of the images.
        groups: the group of each.
    """
    ids = torch.as_tensor(groups)
    return torch.stack([mean_distance(rows[ids == group]) for group in ids.unique()]).mean().item()


def thumbnails(images: Tensor) -> Tensor:
    """uint8 images (n, H, W, 3) as float rows (n, pixels) in [0, 1] at an eighth of the size."""
    side = max(1, images.shape[1] // 8)
    return torch.nn.functional.adaptive_avg_pool2d(images.permute(0, 3, 1, 2).float() / 255, side).flatten(1)


def mean_distance(rows: Tensor) -> Tensor:
    """Mean over pairs of rows (n, pixels) of their root mean square difference, a scalar; 0 if n is 1."""
    return torch.pdist(rows).mean() / rows.shape[1] ** 0.5 if len(rows) > 1 else torch.zeros(())
