"""Relevance to weights: where and when a rollout's advantage counts.

Every arm is a marginal of one tensor, the relevance (T, B, h, w), scaled to mean 1 over steps and positions for each
rollout, so that all arms spend the same total credit. The controls replace the map and keep everything else.

| arm | weight | what it removes |
|---|---|---|
| ``uniform`` (also ``flow_grpo``, ``dense_uniform``) | 1 | everything |
| ``spatial`` | mean over t | when |
| ``temporal`` | mean over (h, w) | where |
| ``star`` | the relevance itself | nothing |
| ``star_shuffled`` | the relevance of a rollout of another prompt | the match of map and prompt |
| ``star_random`` | a smooth random field with the rollout's own values | any meaning of the map |
"""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from star.common.errors import UserError

UNIFORM = ("uniform", "flow_grpo", "dense_uniform")
ARMS = (*UNIFORM, "spatial", "temporal", "star", "star_shuffled", "star_random")
# Correlation length of star_random's field, as a share of each axis.
SMOOTHNESS = 1 / 8


def allocate(
    relevance: Tensor,
    arm: str,
    *,
    cap: float | None = None,
    mix: float = 1.0,
    exponent: float = 1.0,
    prompts: Sequence[int] | Tensor | None = None,
    keys: Sequence[int] | Tensor | None = None,
    seed: int = 0,
) -> Tensor:
    """The weights of every step and position, float32 (T, B, h, w), >= 0, mean 1 over (T, h, w) for each rollout.

    In this order: the map is raised to ``exponent``; the arm's marginal is taken and scaled to mean 1; values above
    ``cap`` are cut and what they lose goes to the others in proportion, so that cap and mean both hold; the result is
    mixed with uniform, ``W <- mix W + 1 - mix``.

    A rollout's weights depend on its own relevance and, for the random controls, on ``seed`` and its key; those of
    ``star_shuffled`` also on the set of rollouts given, but on their order only if keys repeat. Give it whole epochs.

    Args:
        relevance: (T, B, h, w), finite, >= 0, not all 0 for any rollout; unused but for its shape by ``uniform``.
        arm: one of :data:`ARMS`.
        cap: largest weight, > 1; None for no cap.
        mix: share of the map in the result, in [0, 1].
        exponent: > 0; below 1 flattens the map, above 1 sharpens it.
        prompts: for ``star_shuffled``, the id >= 0 of each rollout's prompt, (B,).
        keys: for the random controls, an id >= 0 of each rollout, (B,); by default its place in the batch.
        seed: of the random controls, >= 0.

    Raises:
        ValueError: an unknown arm, an option out of range or a wrong shape.
        UserError: a rollout's map cannot be scaled or capped, or no donor of another prompt exists.
    """
    if arm not in ARMS:
        raise ValueError(f"unknown arm {arm!r}; the arms are {', '.join(ARMS)}")
    if not (0 <= mix <= 1 and 0 < exponent < math.inf and (cap is None or cap > 1)):
        raise ValueError(f"mix is in [0, 1], exponent > 0, cap > 1; got mix={mix}, exponent={exponent}, cap={cap}")
    if relevance.dim() != 4 or relevance.numel() == 0:
        raise ValueError(f"relevance is (T, B, h, w) and not empty, got {tuple(relevance.shape)}")
    if arm in UNIFORM:
        return torch.ones_like(relevance, dtype=torch.float32)
    _check_maps(relevance)
    rollouts = relevance.shape[1]
    ids = _ids(range(rollouts) if keys is None else keys, "keys", rollouts)
    if arm == "star_shuffled":
        if prompts is None:
            raise ValueError("star_shuffled needs the prompt of each rollout")
        relevance = relevance[:, donors(_ids(prompts, "prompts", rollouts), ids, seed)]
    elif arm == "star_random":
        relevance = torch.stack([_randomised(relevance[:, i], ids[i], seed) for i in range(rollouts)], dim=1)

    # Relative to its largest value first: powers of a small attention share would underflow.
    powers = (relevance.double() / relevance.double().amax((0, 2, 3), keepdim=True)) ** exponent
    if arm == "spatial":
        powers = powers.mean(0, keepdim=True).expand_as(powers)
    elif arm == "temporal":
        powers = powers.mean((2, 3), keepdim=True).expand_as(powers)
    weights = powers / powers.mean((0, 2, 3), keepdim=True)
    if cap is not None:
        weights = _capped(weights, cap)
    weights = (mix * weights + (1 - mix)).float()
    off = (weights.mean((0, 2, 3)) - 1).abs().max().item()
    if not off <= 1e-4:
        raise RuntimeError(f"the mean of the {arm} weights is off 1 by {off}")
    return weights


def donors(prompts: Sequence[int], keys: Sequence[int], seed: int) -> list[int]:
    """For each rollout the index of the one whose map it gets: a permutation that never stays within a prompt.

    Rollouts are laid out prompt by prompt, prompts and members in an order drawn from the seed; each takes the map of
    the one that is further by the size of the largest group.

    Args:
        prompts: the prompt id of each rollout, >= 0.
        keys: the id of each rollout, >= 0.
        seed: >= 0.

    Raises:
        UserError: more than half of the rollouts share a prompt, so that no such permutation exists.
    """
    shift = max(Counter(prompts).values())
    if 2 * shift > len(prompts):
        raise UserError(
            f"star_shuffled: {shift} of {len(prompts)} rollouts share one prompt, but each needs the map of another; "
            "use at least two prompts an epoch, none with more than half of the rollouts"
        )
    places = {prompt: _draw(seed, 0, prompt) for prompt in set(prompts)}
    order = sorted(range(len(keys)), key=lambda i: (places[prompts[i]], prompts[i], _draw(seed, 1, keys[i]), keys[i]))
    result = [0] * len(order)
    for place, rollout in enumerate(order):
        result[rollout] = order[(place + shift) % len(order)]
    return result


def effective_sample_share(weights: Tensor) -> Tensor:
    """``(sum W)^2 / (n sum W^2)`` over a rollout's n weights, (T, B, h, w) -> (B,): 1 if uniform, 1/n for a spike."""
    count = weights.numel() / weights.shape[1]
    weights = weights.double()
    return (weights.sum((0, 2, 3)) ** 2 / (count * weights.square().sum((0, 2, 3)))).float()


def upsample(weights: Tensor, patch: int) -> Tensor:
    """From image tokens to latent positions, (..., h, w) -> (..., h patch, w patch): every token covers its patch."""
    return weights.repeat_interleave(patch, -2).repeat_interleave(patch, -1)


def _check_maps(relevance: Tensor) -> None:
    for reason, bad in (
        ("is not finite", ~relevance.isfinite().all(3).all(2).all(0)),
        ("has negative values", (relevance < 0).any(3).any(2).any(0)),
        ("is 0 everywhere", (relevance == 0).all(3).all(2).all(0)),
    ):
        if bad.any():
            rollout = bad.nonzero()[0].item()
            raise UserError(f"the relevance of rollout {rollout} {reason}: check its core words and the chosen blocks")


def _ids(values: Sequence[int] | Tensor, name: str, rollouts: int) -> list[int]:
    ids = [int(value) for value in values]
    if len(ids) != rollouts or min(ids, default=0) < 0:
        raise ValueError(f"{name} must be {rollouts} integers >= 0, one for each rollout")
    return ids


def _draw(*key: int) -> float:
    return np.random.default_rng(key).random()


def _randomised(relevance: Tensor, key: int, seed: int) -> Tensor:
    """The values of one rollout's map (T, h, w), put in the rank order of a smooth Gaussian random field.

    The field is white noise under a Gaussian filter whose width is :data:`SMOOTHNESS` of each axis; it is periodic, so
    that no place and no step is favoured.
    """
    noise = np.random.default_rng((seed, 2, key)).standard_normal(relevance.shape)
    field = gaussian_filter(noise, [SMOOTHNESS * size for size in relevance.shape], mode="wrap")
    order = torch.from_numpy(field.ravel().argsort()).to(relevance.device)
    result = torch.empty_like(relevance).flatten()
    result[order] = relevance.flatten().sort().values
    return result.view_as(relevance)


def _capped(weights: Tensor, cap: float) -> Tensor:
    """``min(scale W, cap)`` with the one scale >= 1 for each rollout that keeps the mean at 1."""
    steps, rollouts, height, width = weights.shape
    values = weights.transpose(0, 1).reshape(rollouts, -1)
    count = values.shape[1]
    highest = values.sort(1, descending=True).values
    # With the k largest at the cap, the others must sum to count - k cap; the smallest k whose next value then stays
    # below the cap is right. The tolerance lets a map through that has to be at the cap wherever it is not 0.
    rest = highest.flip(1).cumsum(1).flip(1)
    scales = (count - cap * torch.arange(count).to(values)) / rest
    fits = (rest > 0) & (scales >= 0) & (scales * highest <= cap * (1 + 1e-9))
    if not fits.any(1).all():
        rollout = int((~fits.any(1)).nonzero()[0])
        share = (values[rollout] > 0).double().mean().item()
        raise UserError(
            f"rollout {rollout} has relevance on {share:.1%} of its positions: no weights of mean 1 stay below the cap "
            f"of {cap}; raise the cap to more than {1 / share:.3g}"
        )
    scale = scales.gather(1, fits.int().argmax(1, keepdim=True))
    return (scale * values).clamp(max=cap).reshape(rollouts, steps, height, width).transpose(0, 1)
