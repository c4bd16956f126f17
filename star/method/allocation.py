"""Relevance to weights: where and when a rollout's advantage counts.

The paper's arms are marginals of one tensor, the relevance (T, B, h, w). Every arm's map is scaled to mean 1 over steps and
positions for each rollout, so that all arms spend the same total credit. The controls (:mod:`baselines.controls`) replace the
map and keep everything else. :mod:`star.method.arms` lists all arms.

| map | weight | what it removes |
|---|---|---|
| ``uniform`` | 1 | everything |
| ``spatial`` | mean over t | when |
| ``temporal`` | mean over (h, w) | where |
| ``star`` | the relevance itself | nothing |
| ``star_shuffled`` | the relevance of a rollout of another prompt | the match of map and prompt |
| ``star_random`` | a smooth random field with the rollout's own values | any meaning of the map |
| ``star_shifted`` | the relevance, moved by half the canvas | the match of map and place |
| ``oracle`` | 1 where the verdict on the final image comes from, else 0.001 | attention |
| ``oracle_twins`` | mean of the oracle's maps of the prompt's other rollouts | attention, and the rollout's own noise |
| ``background`` | the complement of the oracle's | what is judged |

Arms that follow other published works are in :mod:`baselines.neighbours`.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from star.common.errors import RunStopped, UserError
from star.common.plugins import call_own, is_path
from star.method.arms import Rollouts, map_maker, needs
from star.method.choices import NORMALISE

if TYPE_CHECKING:
    from star.method.arms import MapMaker


def allocate(
    relevance: Tensor,
    arm: str,
    *,
    cap: float | None = None,
    mix: float = 1.0,
    exponent: float = 1.0,
    normalise: str = "rollout",
    prompts: Sequence[int] | Tensor | None = None,
    keys: Sequence[int] | Tensor | None = None,
    seed: int = 0,
    places: Tensor | None = None,
    images: Tensor | None = None,
    slopes: Tensor | None = None,
) -> Tensor:
    """The weights of every step and position, float32 (T, B, h, w), >= 0.

    Each rollout's have mean 1 over (T, h, w) and, with ``normalise="step"``, also over (h, w) at each of its steps.
    In this order: the relevance is raised to ``exponent``; the arm's map is made of it and scaled to mean 1; values above
    ``cap`` are cut and their excess is spread over the others in proportion, so that cap and mean both hold; the result is
    mixed with uniform, ``W <- mix W + 1 - mix``.

    A rollout's weights depend on its own data and, for the random controls, on ``seed`` and its key. Those of
    ``star_shuffled`` and ``oracle_twins`` also depend on which other rollouts are given, but on their order only if keys
    repeat: give them whole epochs.

    Args:
        relevance: (T, B, h, w), finite, >= 0, not all 0 for any rollout; ``uniform`` uses only its shape.
        arm: a key of :data:`star.method.arms.MAPS`, or the path of a user-defined function (``my_module:my_map``).
        cap: largest weight, > 1; None for no cap.
        mix: share of the map in the result, in [0, 1].
        exponent: > 0; below 1 flattens the map, above 1 sharpens it.
        normalise: ``rollout``: mean 1 over a rollout's steps and positions, so that scaling a step uses later steps' maps;
            ``step``: mean 1 over the positions of each step, so that it uses no other step, and all steps count the same.
        prompts: for ``star_shuffled`` and ``oracle_twins``, the id >= 0 of each rollout's prompt, (B,).
        keys: for the random controls, an id >= 0 of each rollout, (B,); by default its index in the batch.
        seed: of the random controls, >= 0.
        places: for ``oracle``, ``oracle_twins`` and ``background``, the share of each token's area where the verdict comes
            from, (B, h, w).
        images: for ``vipo``, the final images, uint8 (B, H, W, 3).
        slopes: for ``sga`` and ``sga_flipped``, the gradient of the reward with respect to their pixels, (B, H, W, 3).

    Raises:
        ValueError: an unknown arm, an option out of range, a wrong shape, or what an arm's map needs is not given.
        UserError: a user-defined function cannot be imported or makes no map, a rollout's map cannot be scaled or capped,
            or no donor of another prompt exists.
        RunStopped: the relevance is not finite.
    """
    maker = map_maker(arm)
    if not (0 <= mix <= 1 and 0 < exponent < math.inf and (cap is None or cap > 1)):
        raise ValueError(f"mix is in [0, 1], exponent > 0, cap > 1; got mix={mix}, exponent={exponent}, cap={cap}")
    if normalise not in NORMALISE:
        raise ValueError(f"unknown normalisation {normalise!r}; it is one of {', '.join(NORMALISE)}")
    if relevance.dim() != 4 or relevance.numel() == 0:
        raise ValueError(f"relevance is (T, B, h, w) and not empty, got {tuple(relevance.shape)}")
    if maker is None:
        return torch.ones_like(relevance, dtype=torch.float32)
    _check_maps(relevance)
    rollouts = relevance.shape[1]
    known = Rollouts(
        prompts=() if prompts is None else _ids(prompts, "prompts", rollouts),
        keys=_ids(range(rollouts) if keys is None else keys, "keys", rollouts),
        seed=seed,
        places=None if places is None else _shares(places, relevance),
        images=images,
        slopes=slopes,
    )
    for what in ("places", "images", "slopes"):
        if needs(maker, what) and getattr(known, what) is None:
            raise ValueError(f"{arm} needs the {what} of each rollout")
    # Divided by its largest value first: powers of a small attention share would underflow.
    powers = (relevance.double() / relevance.double().amax((0, 2, 3), keepdim=True)) ** exponent
    maps = _made(arm, maker, powers, known)
    # To normalise step by step, treat every step as a rollout of its own.
    parts = maps.flatten(0, 1)[None] if normalise == "step" else maps
    _check_maps(parts, arm if is_path(arm) else "", rollouts)
    weights = parts / parts.mean((0, 2, 3), keepdim=True)
    if cap is not None:
        weights = _capped(weights, cap, rollouts)
    weights = (mix * weights + (1 - mix)).float()
    off = (weights.mean((0, 2, 3)) - 1).abs().max().item()
    if not off <= 1e-4:
        raise RuntimeError(f"the mean of the {arm} weights is off 1 by {off}")
    return weights.reshape(maps.shape)


def try_map(arm: str, steps: int, prompts: int, group: int, tokens: Sequence[int], side: int) -> None:
    """Check that an arm's maps can be made, before an epoch is drawn for them.

    Their values are not checked here; :func:`allocate` does that.

    Args:
        arm: one with maps, or the path of a user-defined function.
        steps: T.
        prompts: number of prompts in an epoch; the trial has rollouts of at most two.
        group: rollouts per prompt.
        tokens: (h, w).
        side: of the images, in pixels.

    Raises:
        UserError: the maps cannot be made.
    """
    maker, rollouts = map_maker(arm), min(2, prompts) * group
    assert maker is not None
    given: dict[str, Callable[[], Tensor]] = {
        "places": lambda: torch.full((rollouts, *tokens), 0.5),
        "images": lambda: torch.full((rollouts, side, side, 3), 255, dtype=torch.uint8),
        "slopes": lambda: torch.ones(rollouts, side, side, 3),
    }
    relevance = torch.linspace(0.1, 1, steps * rollouts * math.prod(tokens), dtype=torch.float64)
    known = Rollouts(
        prompts=_ids([number // group for number in range(rollouts)], "prompts", rollouts),
        keys=_ids(range(rollouts), "keys", rollouts),
        seed=0,
        **{what: make() for what, make in given.items() if needs(maker, what)},
    )
    _made(arm, maker, relevance.reshape(steps, rollouts, *tokens), known)


def _made(arm: str, maker: "MapMaker", relevance: Tensor, known: Rollouts) -> Tensor:
    called = partial(call_own, f"method.arm={arm}", "a function of relevance and rollouts", maker) if is_path(arm) else maker
    maps = called(relevance, known)
    if not isinstance(maps, Tensor):
        raise UserError(f"method.arm={arm} must give a tensor like its first argument, not {type(maps).__name__}")
    if maps.shape != relevance.shape:
        raise UserError(f"method.arm={arm} gives maps of shape {tuple(maps.shape)}, but it must keep {tuple(relevance.shape)}")
    return maps.to(relevance)  # a mask has another dtype


def star(relevance: Tensor, rollouts: Rollouts) -> Tensor:
    """The relevance itself, (T, B, h, w) in and out: where and when."""
    return relevance


def spatial(relevance: Tensor, rollouts: Rollouts) -> Tensor:
    """The mean over steps at every step, (T, B, h, w) in and out: where."""
    return relevance.mean(0, keepdim=True).expand_as(relevance)


def temporal(relevance: Tensor, rollouts: Rollouts) -> Tensor:
    """The mean over positions at every position, (T, B, h, w) in and out: when."""
    return relevance.mean((2, 3), keepdim=True).expand_as(relevance)


def effective_sample_share(weights: Tensor) -> Tensor:
    """``(sum W)^2 / (n sum W^2)`` over a rollout's n weights, (T, B, h, w) -> (B,): 1 if uniform, 1/n for a spike."""
    count = weights.numel() / weights.shape[1]
    weights = weights.cpu().double()  # Apple's GPUs have no float64
    return (weights.sum((0, 2, 3)) ** 2 / (count * weights.square().sum((0, 2, 3)))).float()


def overlap(weights: Tensor, other: Tensor) -> Tensor:
    """How much of a rollout's credit two maps give to the same steps and positions, both (T, B, h, w) -> (B,), in [0, 1].

    The sum of the elementwise minimum of the two, each scaled to sum 1 for a rollout: 1 for equal maps, 0 for disjoint ones.

    Args:
        weights: >= 0, not all 0 for any rollout.
        other: likewise.
    """
    shares = [maps.cpu().double() / maps.cpu().double().sum((0, 2, 3), keepdim=True) for maps in (weights, other)]
    return torch.minimum(*shares).sum((0, 2, 3)).float()


def upsample(weights: Tensor, patch: int) -> Tensor:
    """From image tokens to latent positions, (..., h, w) -> (..., h patch, w patch): every token covers its patch."""
    return weights.repeat_interleave(patch, -2).repeat_interleave(patch, -1)


def _check_maps(relevance: Tensor, function: str = "", rollouts: int | None = None) -> None:
    """Refuse maps that cannot be scaled to a mean of 1.

    Args:
        relevance: (T, B, h, w), or (1, T * B, h, w) where each step is normalised by itself.
        function: path of the user-defined function that made them; empty for relevance and the maps of named arms.
        rollouts: B.
    """
    for reason, bad in (
        ("is not finite", ~relevance.isfinite().all(3).all(2).all(0)),
        ("has negative values", (relevance < 0).any(3).any(2).any(0)),
        ("is 0 everywhere", (relevance == 0).all(3).all(2).all(0)),
    ):
        if not bad.any():
            continue
        which = _which(int(bad.nonzero()[0]), len(bad), rollouts)
        if function:
            raise UserError(f"the map that method.arm={function} gives for {which} {reason}: correct the function")
        if reason == "is not finite":  # no prompt causes that
            raise RunStopped(f"the relevance of {which} {reason}: the attention of the chosen blocks overflows")
        raise UserError(f"the relevance of {which} {reason}: check its core words and the chosen blocks")


def _which(index: int, maps: int, rollouts: int | None) -> str:
    """The name of map ``index`` for a message: a rollout, or one step of it if there is a map for every step."""
    if rollouts is None or maps == rollouts:
        return f"rollout {index}"
    return f"rollout {index % rollouts} at its trained step {index // rollouts}"


def _ids(values: Sequence[int] | Tensor, name: str, rollouts: int) -> list[int]:
    ids = [int(value) for value in values]
    if len(ids) != rollouts or min(ids, default=0) < 0:
        raise ValueError(f"{name} must be {rollouts} integers >= 0, one for each rollout")
    return ids


def _shares(places: Tensor, relevance: Tensor) -> Tensor:
    if places.shape != relevance.shape[1:] or not ((places >= 0) & (places <= 1)).all():
        raise ValueError(f"places are {tuple(relevance.shape[1:])} in [0, 1], got {tuple(places.shape)}")
    return places.to(relevance.device, torch.float64)


def _capped(weights: Tensor, cap: float, rollouts: int) -> Tensor:
    """``min(scale W, cap)`` with the one scale >= 1 for each rollout, or step of it, that keeps the mean at 1."""
    steps, maps, height, width = weights.shape
    values = weights.transpose(0, 1).reshape(maps, -1)
    count = values.shape[1]
    highest = values.sort(1, descending=True).values
    # With the k largest values at the cap, the others must sum to count - k cap; the right k is the smallest for which the
    # next value then stays below the cap. The tolerance admits a map that must be at the cap wherever it is not 0.
    rest = highest.flip(1).cumsum(1).flip(1)
    scales = (count - cap * torch.arange(count).to(values)) / rest
    fits = (rest > 0) & (scales >= 0) & (scales * highest <= cap * (1 + 1e-9))
    if not fits.any(1).all():
        index = int((~fits.any(1)).nonzero()[0])
        which, share = _which(index, maps, rollouts), (values[index] > 0).double().mean().item()
        raise UserError(
            f"{which} has relevance on {share:.1%} of its positions: no weights of mean 1 stay below the "
            f"cap of {cap}; raise the cap to more than {1 / share:.3g}"
        )
    scale = scales.gather(1, fits.int().argmax(1, keepdim=True))
    return (scale * values).clamp(max=cap).reshape(maps, steps, height, width).transpose(0, 1)
