"""Rollouts: which prompts an epoch samples, and the stochastic trajectories of a micro-batch with their relevance."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from star.common.noise import generator, normal
from star.config import RelevanceConfig, SamplingConfig
from star.method.attention import Relevance
from star.method.objective import log_prob_map
from star.method.sampling import sigmas, transition
from star.models.sd3 import Base
from star.tasks import Prompt


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
        means: of its transitions, (len(steps), B, C, H, W).
        relevance: (len(steps), B, h, w), or None if it was not captured.
        images: uint8 (B, H, W, 3), on the CPU.
    """

    samples: list[Sample]
    steps: list[int]
    latents: Tensor
    log_probs: Tensor
    means: Tensor
    relevance: Tensor | None
    images: Tensor


def plan(prompts: int, groups: int, group_size: int, seed: int, epoch: int) -> list[Sample]:
    """The samples of an epoch, group by group: distinct prompts, drawn anew each epoch (with repeats if too few)."""
    chosen: list[int] = []
    source = generator(seed, "prompts", epoch)
    while len(chosen) < groups:
        chosen += torch.randperm(prompts, generator=source).tolist()
    return [Sample(prompt, index) for prompt in chosen[:groups] for index in range(group_size)]


def trained_steps(sampling: SamplingConfig, seed: int, epoch: int) -> list[int]:
    """The stochastic steps that are trained: a window drawn for the epoch, or all but the last.

    With a window the other steps are deterministic. Without one every step is stochastic, also the last, which is
    never trained (its deviation is almost 0).
    """
    if not sampling.window:
        return list(range(sampling.steps - 1))
    first, last = sampling.window_range
    places = last - sampling.window - first + 1
    start = first + int(torch.randint(places, (), generator=generator(seed, "window", epoch)))
    return list(range(start, start + sampling.window))


def relevance_of(base: Base, config: RelevanceConfig, mask: Tensor) -> Relevance:
    """The configured capture for the core words' columns, bool (B, columns).

    Raises:
        UserError: blocks or heads that the transformer does not have.
    """
    return Relevance(base.transformer, config.blocks, mask, heads=config.heads or "mean", softmax_over=config.softmax_over)


@torch.no_grad()
def sample(
    base: Base,
    samples: Sequence[Sample],
    prompts: Sequence[Prompt],
    sampling: SamplingConfig,
    steps: Sequence[int],
    relevance: RelevanceConfig | None,
    reduction: str,
    seed: int,
    epoch: int,
) -> Trajectory:
    """Draw one micro-batch.

    Noise is keyed by (seed, epoch, prompt, sample); relevance is captured at the trained steps from the policy that
    samples, or not at all if ``relevance`` is None.

    Args:
        base: the model.
        samples: B samples.
        prompts: all training prompts; samples point into them.
        sampling: schedule, noise and guidance.
        steps: the trained steps, see :func:`trained_steps`.
        relevance: which blocks and columns.
        reduction: of the log-probabilities, ``image`` or ``position``.
        seed, epoch: of the noise.
    """
    schedule = sigmas(sampling.steps).to(base.device)
    texts = [prompts[s.prompt].text for s in samples]
    spans = [prompts[s.prompt].spans for s in samples]
    x = torch.stack([_initial(base, s, sampling.same_latent, seed, epoch) for s in samples]).to(base.device)
    noise = [generator(seed, epoch, "steps", s.prompt, s.index) for s in samples]
    capture = None
    if relevance is not None:
        capture = relevance_of(base, relevance, base.core_columns(texts, spans, relevance.columns))

    latents, log_probs, means, maps = [x], [], [], []
    for step in range(sampling.steps):
        trained = step in steps
        with capture if capture and trained else nullcontext():
            v = base.velocity(x, schedule[step], texts, sampling.guidance)
        if capture and trained:
            maps.append(capture.take())
        kind = sampling.kind if trained or not sampling.window else "ode"
        mean, std, _ = transition(x, v, schedule, step, kind, sampling.noise_level)
        # Every sample draws for every step, so that a step's noise does not depend on where the window lies.
        z = torch.stack([torch.randn(base.latent_shape, generator=source) for source in noise]).to(base.device)
        x = mean + std * z
        if trained:
            log_probs.append(log_prob_map(x, mean, std, kind, reduction))
            means.append(mean)
            latents.append(x)
        elif not log_probs:
            latents = [x]
    return Trajectory(
        samples=list(samples),
        steps=list(steps),
        latents=torch.stack(latents),
        log_probs=torch.stack(log_probs),
        means=torch.stack(means),
        relevance=torch.stack(maps) if capture else None,
        images=base.decode(x).cpu(),
    )


@torch.no_grad()
def generate(base: Base, texts: Sequence[str], keys: Sequence[tuple[int | str, ...]], steps: int, guidance: float) -> Tensor:
    """Images for evaluation, uint8 (B, H, W, 3) on the CPU: the deterministic flow from noise with the given keys."""
    schedule = sigmas(steps).to(base.device)
    x = torch.stack([normal(base.latent_shape, *key) for key in keys]).to(base.device)
    for step in range(steps):
        v = base.velocity(x, schedule[step], texts, guidance)
        x = transition(x, v, schedule, step, "ode").mean
    return base.decode(x).cpu()


def diversity(images: Tensor, groups: Sequence[int]) -> float:
    """Mean over groups of the mean distance of two images of a group (of 0 if it has one).

    The distance is the root mean square difference of pixels in [0, 1] at an eighth of the size.

    Args:
        images: uint8 (n, H, W, 3).
        groups: the group of each.
    """
    small, ids = thumbnails(images), torch.as_tensor(groups)
    return torch.stack([mean_distance(small[ids == group]) for group in ids.unique()]).mean().item()


def thumbnails(images: Tensor) -> Tensor:
    """uint8 images (n, H, W, 3) as float rows (n, pixels) in [0, 1] at an eighth of the size."""
    side = max(1, images.shape[1] // 8)
    return torch.nn.functional.adaptive_avg_pool2d(images.permute(0, 3, 1, 2).float() / 255, side).flatten(1)


def mean_distance(rows: Tensor) -> Tensor:
    """Mean over pairs of rows (n, pixels) of their root mean square difference, a scalar; 0 if n is 1."""
    return torch.pdist(rows).mean() / rows.shape[1] ** 0.5 if len(rows) > 1 else torch.zeros(())


def _initial(base: Base, sample: Sample, same_latent: bool, seed: int, epoch: int) -> Tensor:
    return normal(base.latent_shape, seed, epoch, "start", sample.prompt, 0 if same_latent else sample.index)
