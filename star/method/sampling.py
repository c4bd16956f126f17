"""Denoising steps of a rectified flow as Gaussian policies: schedule, transitions and log-probabilities.

The flow is ``x_s = (1 - s) x_0 + s eps`` with ``s`` in [0, 1]; the model predicts the velocity ``v = eps - x_0``.
A step goes from ``s`` to ``s' < s``, so ``dt = s' - s`` is negative. All arithmetic is float32, whatever the model
computes in.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from star.method.choices import KINDS

TRAIN_TIMESTEPS = 1000


class Transition(NamedTuple):
    """The Gaussian of one step: ``next = mean + std * z`` with z standard normal.

    Attributes:
        mean: like x, float32.
        std: the true standard deviation of the transition, a scalar on the schedule's device; 0 for ode.
        dt: ``s' - s``, negative, likewise.
    """

    mean: Tensor
    std: Tensor
    dt: Tensor


def sigmas(steps: int, shift: float = 3.0) -> Tensor:
    """The noise levels of an image, float32 (steps + 1), from 1 down to 0.

    Equal to diffusers' ``FlowMatchEulerDiscreteScheduler(shift=shift)``, which shifts its low end twice: its smallest
    level is already shifted when ``set_timesteps`` spaces levels evenly down to it and shifts them all (again).

    Raises:
        ValueError: fewer than 1 step, or a shift that is not positive.
    """
    if steps < 1 or not shift > 0:
        raise ValueError(f"sigmas needs steps >= 1 and shift > 0, got steps={steps}, shift={shift}")
    ends = torch.tensor([TRAIN_TIMESTEPS, 1], dtype=torch.float32) / TRAIN_TIMESTEPS
    start, end = TRAIN_TIMESTEPS * _shifted(ends, shift).double()
    levels = torch.linspace(start, end, steps, dtype=torch.float64) / TRAIN_TIMESTEPS
    return torch.cat([_shifted(levels, shift), torch.zeros(1)]).float()


def _shifted(levels: Tensor, shift: float) -> Tensor:
    return shift * levels / (1 + (shift - 1) * levels)


def transition(x: Tensor, v: Tensor, sigmas: Tensor, index: int, kind: str = "sde", noise_level: float = 0.7) -> Transition:
    """The distribution of the next latents, given the velocity at this step.

    ``sde`` is Flow-GRPO's stochastic step (arXiv 2505.05470), ``cps`` coefficients-preserving sampling
    (arXiv 2509.05952), ``ode`` the plain Euler step. With noise level 0 the first two are the Euler step too.

    Args:
        x: latents at this step, (B, ...).
        v: the model's velocity, shaped as x.
        sigmas: the schedule, (steps + 1,), best in main memory: its scalars reach GPU kernels by value, so nothing waits for a
            copy.
        index: the step, from 0 to steps - 1.
        kind: ``sde``, ``cps`` or ``ode``.
        noise_level: Flow-GRPO's a >= 0 for ``sde``; eta in [0, 1] for ``cps``; unused by ``ode``.

    Raises:
        ValueError: unknown kind, step or noise level out of range, or shapes that differ.
    """
    _check_kind(kind)
    if x.shape != v.shape:
        raise ValueError(f"latents and velocity differ in shape: {tuple(x.shape)} and {tuple(v.shape)}")
    if noise_level < 0 or (kind == "cps" and noise_level > 1):
        raise ValueError(f"noise_level is {noise_level}; it must be >= 0 for sde and in [0, 1] for cps")
    steps = len(sigmas) - 1
    if not 0 <= index < steps:
        raise ValueError(f"step {index} is out of range; a schedule of {steps} steps has steps 0 to {steps - 1}")
    x, v, sigmas = x.float(), v.float(), sigmas.float()
    here, there = sigmas[index], sigmas[index + 1]
    dt = there - here
    if kind == "ode":
        return Transition(x + v * dt, torch.zeros_like(dt), dt)
    if kind == "cps":
        angle = noise_level * math.pi / 2
        clean, noise = x - here * v, x + (1 - here) * v
        return Transition((1 - there) * clean + there * math.cos(angle) * noise, there * math.sin(angle), dt)
    # At s = 1 the variance would be infinite; the schedule's second level stands in, as in Flow-GRPO.
    variance_rate = noise_level**2 * here / (1 - torch.where(here == 1, sigmas[1], here))
    mean = x * (1 + variance_rate * dt / (2 * here)) + v * (1 + variance_rate * (1 - here) / (2 * here)) * dt
    return Transition(mean, torch.sqrt(-variance_rate * dt), dt)


def log_prob(next: Tensor, mean: Tensor, std: Tensor | float, kind: str = "sde") -> Tensor:
    """Log-probability of the next latents, per element, float32.

    ``sde``: the normal density. ``cps``: ``-(next - mean)^2``, without constants and variance, as published
    (arXiv 2509.05952 and Flow-GRPO's code). That is not a density, so its clip ranges are on another scale. Gradients
    flow through the mean only.

    Args:
        next: latents after the step; taken as a constant.
        mean: of the transition, shaped as ``next``.
        std: of the transition, broadcastable to it; positive for ``sde``, unused by ``cps``.
        kind: ``sde`` or ``cps``.

    Raises:
        ValueError: an ode step (it has no density), an unknown kind, shapes that differ, or a std that is not positive.
    """
    _check_kind(kind)
    if kind == "ode":
        raise ValueError("an ode step is deterministic and has no log-probability; only sde and cps steps do")
    if next.shape != mean.shape:
        raise ValueError(f"next latents and mean differ in shape: {tuple(next.shape)} and {tuple(mean.shape)}")
    squared = (next.detach().float() - mean.float()).square()
    if kind == "cps":
        return -squared
    std = torch.as_tensor(std, dtype=torch.float32)
    if not (std > 0).all():
        raise ValueError("the std of an sde step must be positive to have a log-probability; is its noise level 0?")
    return -squared / (2 * std.square()) - std.log() - math.log(math.sqrt(2 * math.pi))


def score_size(sigmas: Tensor, index: int, kind: str, noise_level: float) -> Tensor:
    """The size of a step's score with respect to the velocity, a scalar, up to a factor that all steps share.

    The gradient of :func:`log_prob` is the noise that was drawn times ``|d mean / d v| / std`` for ``sde``, and times
    ``|d mean / d v| std`` for ``cps``, whose log-probability has no variance. For ``sde`` it is larger at late steps, which
    would otherwise dominate the gradient (TempFlow-GRPO, arXiv 2508.04324, divides by it).

    Args:
        sigmas, index, kind, noise_level: as for :func:`transition`; the step must be stochastic.
    """
    moved = transition(torch.zeros(1), torch.ones(1), sigmas.cpu(), index, kind, noise_level)
    slope = moved.mean.abs().squeeze()
    return slope * moved.std if kind == "cps" else slope / moved.std


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"unknown transition kind {kind!r}; the kinds are {', '.join(KINDS)}")
