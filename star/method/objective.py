"""The policy objective: group-relative advantages, the clipped loss with spatial weights, and the KL penalty.

Formulas follow Flow-GRPO (arXiv 2505.05470), which has one ratio of new to old policy per image. Weights that differ between
positions allow three more; at ratio 1 all three have the gradient of the weighted log-probability:

| reduction | ratio of image i at step t and position u | what is clipped |
|---|---|---|
| ``image`` | ``exp(mean_u d)``, weighted by the mean weight | the image |
| ``image_weighted`` | ``exp(mean_u W d)`` | the image |
| ``detached`` | ``sg(exp(mean_u d)) p / sg(p)``, the image's value with each position's gradient | the image |
| ``position`` | ``exp(d)`` | each position |

with ``d = logp_new - logp_old``, averaged over channels, ``p = exp(logp_new)`` and ``sg`` the stop-gradient. Instead of by its
ratio, an update may be bounded by the exact divergence of the two Gaussians, which does not depend on the noise that was drawn
(:class:`Bound`).
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from star.method.arms import RATIOS
from star.method.choices import KLS, STDS
from star.method.sampling import log_prob


class Bound(NamedTuple):
    """A trust region on the divergence, which replaces the ratio's clip, after Flow-DPPO (arXiv 2606.11025).

    Where the old and the new transition are further apart than the limit, updates that would move them further apart, those
    with ``(ratio - 1) A > 0``, have gradient 0. All others keep their unclipped ratio.

    Attributes:
        divergence: KL(old | new) of the transitions, averaged (not summed) over elements: (B, H, W) for ``position``, (B,) for
            the others, which bound the image; see :func:`divergence_map`.
        limit: largest divergence allowed, see :func:`kl_limit_for`.
    """

    divergence: Tensor
    limit: float


class PolicyLoss(NamedTuple):
    """The loss of each sample and, detached from it, what its ratios look like.

    Attributes:
        loss: (B,), to be averaged over all samples and steps of an update.
        distance: ``|ratio - 1|`` of every ratio, (B,) or (B, H, W); 0 up to rounding before the first update of an epoch.
        clip_fraction: share of ratios outside 1 +- clip_range, or of divergences above their limit, in [0, 1], a scalar.
        approx_kl: half the mean squared log-ratio, a scalar.
        image_kl: the same for the images' plain ratios, ``exp(mean_u d)``, whatever is clipped: how far the policy has moved,
            in one unit for all reductions; in another unit under GRPO-Guard, whose log-ratios are not divided by the std.
    """

    loss: Tensor
    distance: Tensor
    clip_fraction: Tensor
    approx_kl: Tensor
    image_kl: Tensor

    @property
    def ratio_error(self) -> Tensor:
        """The largest distance."""
        return self.distance.max()


def advantages(
    rewards: Tensor | Sequence[float], groups: Tensor | Sequence[int], std: str = "batch", eps: float = 1e-4
) -> Tensor:
    """``(reward - mean of its group) / (std + eps)``, float32 (n,).

    When no prompt has a second sample (every group has one member), the group mean says nothing; then, as in
    Flow-GRPO, mean and std are those of all rewards. A lone sample among larger groups has advantage 0, and
    so, with no rounding error, does every sample of a group with equal rewards.

    Args:
        rewards: (n,), finite.
        groups: integer id of each reward's group, (n,).
        std: ``batch``, the population standard deviation of all rewards (Flow-GRPO's ``global_std``), or ``group``,
            that of the reward's own group.
        eps: added to the standard deviation.

    Raises:
        ValueError: an unknown std, no rewards, a reward that is not finite, or lengths that differ.
    """
    if std not in STDS:
        raise ValueError(f"unknown std {std!r} for advantages; it is one of {', '.join(STDS)}")
    values, member = _grouped(rewards, groups)
    if member.shape[1] == len(values):
        member = torch.ones_like(member[:, :1])
    size = member.sum(0)
    mean = torch.where(_constant(values, member), values[member.argmax(0)], (values @ member) / size)
    centred = values - member @ mean
    variance = member @ ((centred.square() @ member) / size)
    if std == "batch":
        variance = (values - values.mean()).square().mean()
    return (centred / (variance.sqrt() + eps)).float()


def mixed_rewards(
    rewards: Mapping[str, Tensor | Sequence[float]],
    weights: Mapping[str, float],
    groups: Tensor | Sequence[int],
    normalise: bool,
) -> Tensor:
    """Weighted sum of several rewards, float64 (n,).

    Args:
        rewards: name -> (n,), finite.
        weights: name -> weight, of the same names.
        groups: integer id of each sample's group, (n,).
        normalise: whether each reward is first standardised within its group, as :func:`advantages` does, so that a weight
            does not depend on the reward's unit and spread. If not, the sum is Flow-GRPO's.

    Raises:
        ValueError: names that differ, and what :func:`advantages` raises.
    """
    if rewards.keys() != weights.keys():
        raise ValueError(f"rewards of {', '.join(rewards)}, but weights of {', '.join(weights)}")
    total = torch.zeros(len(groups), dtype=torch.float64)
    for name, values in rewards.items():
        own = torch.as_tensor(values, dtype=torch.float64)
        total += weights[name] * (advantages(own, groups, "group").double() if normalise else own)
    return total


def zero_std_share(rewards: Tensor | Sequence[float], groups: Tensor | Sequence[int]) -> float:
    """Share of groups whose rewards are all equal, in [0, 1]; they teach nothing, unless every group has one member."""
    return _constant(*_grouped(rewards, groups)).double().mean().item()


def _constant(values: Tensor, member: Tensor) -> Tensor:
    """Which groups have equal rewards only, bool (number of groups,)."""
    inside = member.T.bool()
    return torch.where(inside, values, math.inf).amin(1) == torch.where(inside, values, -math.inf).amax(1)


def _grouped(rewards: Tensor | Sequence[float], groups: Tensor | Sequence[int]) -> tuple[Tensor, Tensor]:
    """Rewards (n,) and the 0/1 membership (n, number of groups), both float64.

    Sums over a group are products with the membership: exact enough and, unlike scattered sums, deterministic on a
    GPU.
    """
    values = torch.as_tensor(rewards, dtype=torch.float64)
    ids = torch.as_tensor(groups, device=values.device)
    if values.dim() != 1 or values.shape != ids.shape or len(values) == 0:
        raise ValueError(f"rewards and groups must both be (n,), n > 0; got {tuple(values.shape)}, {tuple(ids.shape)}")
    if not values.isfinite().all():
        raise ValueError(f"reward {(~values.isfinite()).nonzero()[0].item()} is not finite")
    return values, (ids[:, None] == ids.unique()).double()


def log_prob_map(next: Tensor, mean: Tensor, std: Tensor | float, kind: str, reduction: str) -> Tensor:
    """Log-probability of latents (B, C, H, W), averaged (not summed) per image or per position.

    Args:
        next: latents after the step, a constant.
        mean: of the transition, shaped as ``next``.
        std: of the transition, broadcastable.
        kind: ``sde`` or ``cps``.
        reduction: ``image``, the mean over C, H and W -> (B,); the others, the mean over C -> (B, H, W).

    Raises:
        ValueError: an unknown reduction, and what :func:`star.method.sampling.log_prob` raises.
    """
    _check_reduction(reduction)
    return log_prob(next, mean, std, kind).mean(dim=(1, 2, 3) if reduction == "image" else 1)


def guarded(
    logp_new: Tensor, logp_old: Tensor, mean_new: Tensor, mean_old: Tensor, std: Tensor, reduction: str
) -> tuple[Tensor, Tensor]:
    """New and old log-probabilities whose difference is GRPO-Guard's log-ratio (arXiv 2510.22319).

    For an sde step with ``next = mean_old + std z``, the log-ratio is ``mean(z d) / std - mean(d^2) / (2 std^2)`` with
    ``d = mean_new - mean_old``: negative on average, and on a scale that depends on the step. GRPO-Guard's is ``mean(z d)``.
    The published code also divides the loss by the length of the time step, which is left to the caller.

    Args:
        logp_new, logp_old: (B,) or (B, H, W), see :func:`log_prob_map`.
        mean_new: of the transition under the current policy, (B, C, H, W).
        mean_old: under the policy that sampled, a constant.
        std: of the transition, a scalar.
        reduction: the one that the log-probabilities were made with.

    Raises:
        ValueError: the means differ in shape.
    """
    if mean_new.shape != mean_old.shape:
        raise ValueError(f"the means differ in shape: {tuple(mean_new.shape)} and {tuple(mean_old.shape)}")
    squared = (mean_new.float() - mean_old.detach().float()).square().mean(dim=(1, 2, 3) if reduction == "image" else 1)
    return (logp_new + squared / (2 * std.square())) * std, logp_old * std


def policy_loss(
    logp_new: Tensor,
    logp_old: Tensor,
    advantages: Tensor,
    weights: Tensor | None,
    clip_range: float,
    adv_clip: float = 5.0,
    reduction: str | None = None,
    bound: Bound | None = None,
) -> PolicyLoss:
    """``-min(ratio A W, clip(ratio, 1 - clip_range, 1 + clip_range) A W)``, averaged over positions.

    For ``image_weighted`` W is already inside the ratio and is not applied again. For the others it makes no difference
    whether W >= 0 is inside or outside the minimum.

    Args:
        logp_new: log-probabilities under the current policy, (B,) or (B, H, W).
        logp_old: the same under the policy that sampled; taken as a constant.
        advantages: (B,), clipped to +- ``adv_clip``.
        weights: the allocation W >= 0, shaped as the log-probabilities; None for 1 everywhere.
        clip_range: half width of the trust region of the ratio.
        adv_clip: largest absolute advantage.
        reduction: one of :data:`star.method.arms.RATIOS`; by default ``image`` for (B,) and ``position`` for (B, H, W).
        bound: replaces the clip; None keeps it.

    Raises:
        ValueError: a reduction that does not fit the shape, or shapes that differ. Only an advantage and an image's divergence
            are broadcast, over the positions of their own sample.
    """
    shape = logp_new.shape
    if logp_old.shape != shape or (weights is not None and weights.shape != shape):
        others = f"{tuple(logp_old.shape)} old, {None if weights is None else tuple(weights.shape)} weights"
        raise ValueError(f"log-probabilities and weights must have one shape: {tuple(shape)} new, {others}")
    if len(shape) not in (1, 3) or advantages.shape != shape[:1]:
        got = f"{tuple(shape)} and {tuple(advantages.shape)}"
        raise ValueError(f"log-probabilities are (B,) or (B, H, W) and advantages (B,); got {got}")
    reduction = reduction or ("image" if len(shape) == 1 else "position")
    _check_reduction(reduction)
    if (reduction == "image") != (len(shape) == 1):
        raise ValueError(f"reduction {reduction} does not take log-probabilities {tuple(shape)}")
    apart = logp_new - logp_old.detach()
    weights = None if weights is None else weights.detach()
    log_ratio, weights = _log_ratio(apart, weights, reduction)
    ratio = log_ratio.exp()
    gain = advantages.detach().clamp(-adv_clip, adv_clip).reshape(-1, *[1] * (ratio.dim() - 1))
    if weights is not None:
        gain = gain * weights
    if bound is None:
        surrogate = torch.minimum(ratio * gain, ratio.clamp(1 - clip_range, 1 + clip_range) * gain)
    else:
        over = bound.divergence.detach() > bound.limit
        over = over.reshape(*over.shape, *[1] * (ratio.dim() - over.dim()))
        surrogate = torch.where(over & ((ratio.detach() - 1) * gain > 0), ratio.detach() * gain, ratio * gain)
    loss = -surrogate.flatten(1).mean(1) if ratio.dim() == 3 else -surrogate
    distance = (ratio.detach() - 1).abs()
    return PolicyLoss(
        loss=loss,
        distance=distance,
        clip_fraction=((distance > clip_range) if bound is None else over).float().mean(),
        approx_kl=log_ratio.detach().square().mean() / 2,
        image_kl=apart.detach().reshape(len(apart), -1).mean(1).square().mean() / 2,
    )


def _log_ratio(apart: Tensor, weights: Tensor | None, reduction: str) -> tuple[Tensor, Tensor | None]:
    """The logarithm of the ratio that is clipped, (B,) or (B, H, W), and the weights left to multiply the advantage by."""
    if reduction == "image_weighted":
        weighted = apart if weights is None else weights * apart
        return weighted.mean((1, 2)), None
    if reduction == "detached":
        return apart.detach().mean((1, 2), keepdim=True) + (apart - apart.detach()), weights
    return apart, weights


def divergence_map(mean_new: Tensor, mean_old: Tensor, std: Tensor, reduction: str) -> Tensor:
    """KL(old | new) of two transitions with the same std, ``(mean_new - mean_old)^2 / (2 std^2)``, for :class:`Bound`.

    Args:
        mean_new, mean_old: (B, C, H, W).
        std: of both, a scalar.
        reduction: ``position``, the mean over C -> (B, H, W); the others bound the image: over C, H and W -> (B,).

    Raises:
        ValueError: the means differ in shape.
    """
    apart = kl(mean_new, mean_old, std, dt=0.0, kind="paper")
    return apart if reduction == "position" else apart.mean((1, 2))


def kl_limit_for(reduction: str, clip_range: float, shape: Sequence[int]) -> float:
    """The divergence, averaged over elements, that corresponds to a ratio's clip range: ``n clip_range^2 / 2``.

    Without GRPO-Guard the log-ratio of an sde step is an offset plus the mean over n elements of the drawn noise times the
    difference of the means in units of the std. At that divergence its deviation, ``sqrt(2 KL / n)``, is the clip range.

    Args:
        reduction: one of :data:`star.method.arms.RATIOS`.
        clip_range: of its ratio.
        shape: (C, H, W) of the latents.
    """
    elements = shape[0] if reduction == "position" else math.prod(shape)
    return elements * clip_range**2 / 2


def clip_range_for(reduction: str, image_clip: float, positions: int) -> float:
    """The clip range per position within which one position alone moves the image's ratio by at most ``image_clip``.

    The image's log-ratio is the mean of its positions', so this range is ``positions`` times as wide. A range that is only
    ``sqrt(positions)`` times as wide would clip as often as the image's, but is no trust region: at a single position the
    noise decides which ratios leave it, and the rest pull the policy back to the one that sampled (results/LOG.md).

    Args:
        reduction: one of :data:`star.method.arms.RATIOS`; all but ``position`` clip the image.
        image_clip: the clip range of one ratio per image.
        positions: H times W of the latents.
    """
    return image_clip * positions if reduction == "position" else image_clip


ROUNDING = {"float32": 1e-5, "float16": 5e-4, "bfloat16": 4e-3}
"""Relative differences of two velocities that different kernels for the same product explain.

For the half precisions half a unit in the last place; for float32 what summing thousands of terms in another order causes."""


def ratio_tolerance_for(reduction: str, dtype: str, clip_range: float, positions: int) -> float:
    """How far the ratios of an on-policy update may be from 1.

    The log-ratio is the mean over elements of the noise that was drawn times the difference between the same policy's
    velocities in rollout and update. Rounding errors have no common sign, so a position's mean is ``sqrt(positions)`` times
    as wide as the image's, and the largest of so many twice that. The tolerance never exceeds the clip range: beyond it,
    rounding alone would be clipped. :func:`star.training.guards.check_update` lets a few ratios be further off, since a run
    draws millions, and maps, whose weights W widen an image's log-ratio by ``sqrt(mean W^2)``, have more of them.

    Args:
        reduction: one of :data:`star.method.arms.RATIOS`.
        dtype: what the model computes in: ``float32``, ``float16`` or ``bfloat16``.
        clip_range: of its ratio.
        positions: H times W of the latents.
    """
    return min(clip_range, ROUNDING[dtype] * (2 * math.sqrt(positions) if reduction == "position" else 1))


def kl(mean_new: Tensor, mean_ref: Tensor, std: Tensor | float, dt: Tensor | float, kind: str = "flow_grpo") -> Tensor:
    """KL divergence of two transitions with the same std, averaged over channels: (B, C, H, W) -> (B, H, W).

    ``paper``: ``(mean_new - mean_ref)^2 / (2 std^2)``, the divergence itself. ``flow_grpo``: what Flow-GRPO's code
    does for an sde step since July 2025: its std leaves out ``sqrt(-dt)``, so the result is ``-dt`` times the paper's
    and its coefficient beta is 10 times larger. For a cps step that code divides by the true std: use ``paper``.

    Args:
        mean_new: mean under the current policy; gradients flow through it.
        mean_ref: mean under the reference, a constant.
        std: true standard deviation of the transition, as :func:`star.method.sampling.transition` gives it.
        dt: the step's ``s' - s``, negative; unused by ``paper``.
        kind: ``flow_grpo`` or ``paper``.

    Raises:
        ValueError: an unknown kind or means that differ in shape.
    """
    if kind not in KLS:
        raise ValueError(f"unknown KL {kind!r}; the kinds are {', '.join(KLS)}")
    if mean_new.shape != mean_ref.shape:
        raise ValueError(f"the means differ in shape: {tuple(mean_new.shape)} and {tuple(mean_ref.shape)}")
    variance = torch.as_tensor(std, dtype=torch.float32).square()
    if kind == "flow_grpo":
        variance = variance / -dt
    return ((mean_new.float() - mean_ref.detach().float()).square() / (2 * variance)).mean(1)


def _check_reduction(reduction: str) -> None:
    if reduction not in RATIOS:
        raise ValueError(f"unknown reduction {reduction!r}; the reductions are {', '.join(RATIOS)}")
