"""Checks that stop a run that must not go on: first updates that are not on-policy, non-finite numbers, a collapse."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import PartialState
from torch import Tensor

from star.common.errors import RunStopped
from star.config import Config, ways_to_save_memory
from star.training.machine import placed

COLLAPSED_REWARD = 0.5
"""The share of the first epoch's reward below which an epoch counts as bad."""

COLLAPSED_DIVERSITY = 0.05
"""The same of the diversity within groups."""

SMALLEST_SCALE = 1.0
"""The lowest scale of a float16 model's loss: when a gradient overflows, its update is skipped and the scale halved."""


FEW, FAR = 0.01, 10
"""In a first update at most the share FEW of the ratios may be further from 1 than the tolerance, and none further than FAR
times the tolerance."""


def check_update(figures: Mapping[str, Sequence[float]], beyond: float, tolerance: float, epoch: int) -> None:
    """Stop before an update whose loss is not finite, or an epoch's first one that does not compute what the rollout did.

    Args:
        figures: ``loss`` and ``ratio_error``, the largest distance of a ratio from 1, of each micro-batch and step.
        beyond: the share of the first update's ratios whose distance exceeds the tolerance.
        tolerance: how much of that distance rounding explains, see :func:`star.method.objective.ratio_tolerance_for`.
        epoch: of the update, counted from 1.
    """
    if not all(map(math.isfinite, figures.get("loss", ()))):
        raise RunStopped(f"the loss is not finite in epoch {epoch}: lower train.lr or check the rewards")
    error = max(figures.get("ratio_error", ()), default=0.0)
    if not (error <= tolerance or (error <= FAR * tolerance and beyond <= FEW)):
        raise RunStopped(
            f"ratios of the first update of epoch {epoch} are up to {error:.2g} off 1, {beyond:.1%} of them by more than "
            f"rounding ({tolerance:.2g}): sampling and update do not compute the same; use model.dtype=float32 or another "
            "model.attention, or set train.ratio_tolerance"
        )


def check_gradient(norm: float, scale: float, epoch: int) -> None:
    """Stop if a gradient is not finite and the loss scale cannot be lowered any further."""
    if not math.isfinite(norm) and scale <= SMALLEST_SCALE:
        raise RunStopped(f"the gradient is not finite in epoch {epoch}: lower train.lr or check the rewards")


def check_velocities(finite: Sequence[Tensor]) -> None:
    """Stop if a velocity is not finite: the latents, images and scores that follow from it would mean nothing.

    Args:
        finite: whether the velocity of each denoising step is, bool scalars on the device; only here are they waited for.
    """
    known = torch.stack(list(finite)).tolist()
    if not all(known):
        raise RunStopped(
            f"the model's velocity in denoising step {known.index(False)} is not finite: its weights are damaged, or overflow "
            "its precision; download them again, or set model.dtype=float32"
        )


def check_weights(weights: Mapping[str, Mapping[str, Tensor]], epoch: int) -> None:
    """Stop before weights that are not finite are kept or judged.

    Args:
        weights: what they are -> the tensors by name.
        epoch: the finished one, counted from 1.
    """
    for what, tensors in weights.items():
        finite = torch.stack([tensor.detach().isfinite().all() for tensor in tensors.values()]).tolist()
        if not all(finite):
            name = list(tensors)[finite.index(False)]
            raise RunStopped(f"{what} {name} is not finite after epoch {epoch}: lower train.lr or check the rewards")


@contextmanager
def limits(config: Config) -> Iterator[None]:
    """Inside, running out of GPU memory, recompiling too often, or a kernel that is not deterministic where it must be, stops
    the run with a message that names a remedy."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        reason, here = str(error).partition(". GPU")[0], PartialState()  # the rest is about the allocator
        taken = replace(config, model=placed(config, here.device, here.num_processes))
        ways = " or ".join(ways_to_save_memory(taken, here.num_processes))
        raise RunStopped(
            f"{reason}; set {ways} (another micro-batch is another run, the others go on with this one)"
        ) from None
    except torch._dynamo.exc.FailOnRecompileLimitHit:
        raise RunStopped(
            "compiled blocks met more shapes and modes than are compiled, and interpreted ones would compute other digits; "
            "set model.compile=false"
        ) from None
    except RuntimeError as error:
        reason = str(error).partition(", but you set")[0]
        if not (config.train.deterministic and reason.endswith("does not have a deterministic implementation")):
            raise
        raise RunStopped(
            f"train.deterministic=true: {reason}; leave train.deterministic out or, if an evaluator calls it, use "
            "another engine (GenEval's detector needs a newer transformers)"
        ) from None


def bad_epochs(
    first: Mapping[str, float], now: Mapping[str, float], before: int, allowed: int, sound: Path | None = None
) -> int:
    """How many epochs in a row have been bad, this one included; 0 if this one is not.

    Args:
        first, now: ``reward`` and ``diversity`` of the first epoch and of this one.
        before: the number up to the previous epoch.
        allowed: the number at which the run stops.
        sound: a checkpoint whose weights drew a good epoch, to be named in the message.
    """
    reasons = []
    if first["reward"] > 0 and now["reward"] < COLLAPSED_REWARD * first["reward"]:
        reasons.append(f"the reward is {now['reward']:.3g}, at the start {first['reward']:.3g}")
    if now["diversity"] <= COLLAPSED_DIVERSITY * first["diversity"]:  # 0 is bad from the first epoch on
        reasons.append(f"the diversity within groups is {now['diversity']:.3g}, at the start {first['diversity']:.3g}")
    bad = before + 1 if reasons else 0
    if bad >= allowed:
        kept = f"; its weights before that are kept in {sound}" if sound else ""
        raise RunStopped(f"collapsed: for {bad} epochs {' and '.join(reasons)}; lower train.lr or raise train.beta{kept}")
    return bad
