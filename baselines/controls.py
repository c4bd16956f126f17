"""The controls (makers for :mod:`star.method.arms`): maps that keep everything of STAR's but the meaning, and maps of what
attention can only guess, the places that the verdict comes from."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from star.common.errors import UserError
from star.method.arms import Rollouts, needing

SMOOTHNESS = 1 / 8
"""Correlation length of the random field, as a share of each axis."""

FLOOR = 1e-3
"""What :func:`oracle` and :func:`background` give outside their places; they give 1 inside. It is above 0, so that weights of
mean 1 can stay below a cap where the places are a small part of the canvas. Without any such place, the map is uniform."""


@needing("whole_epoch")
def shuffled(relevance: Tensor, rollouts: Rollouts) -> Tensor:
    """Each rollout gets the map of a rollout of another prompt, see :func:`donors`; (T, B, h, w) in and out.

    Raises:
        ValueError: the prompts are not known.
        UserError: more than half of the rollouts share a prompt.
    """
    if not rollouts.prompts:
        raise ValueError("star_shuffled needs the prompt of each rollout")
    return relevance[:, donors(rollouts.prompts, rollouts.keys, rollouts.seed)]


def randomised(relevance: Tensor, rollouts: Rollouts) -> Tensor:
    """Each rollout's own values (T, B, h, w), put in the rank order of a smooth Gaussian random field.

    The field is white noise under a Gaussian filter whose width is :data:`SMOOTHNESS` of each axis; it is periodic, so
    that no place and no step is favoured.
    """
    return torch.stack([_in_order_of_field(relevance[:, i], key, rollouts.seed) for i, key in enumerate(rollouts.keys)], dim=1)


def shifted(relevance: Tensor, rollouts: Rollouts) -> Tensor:
    """Each rollout's own map, rolled by half the canvas in both axes at every step; (T, B, h, w) in and out.

    The control with the least overlap: layout follows the prompt, so maps of other prompts (:func:`shuffled`) often lie on
    the objects too.
    """
    height, width = relevance.shape[2:]
    return relevance.roll((height // 2, width // 2), (2, 3))


@needing("places")
def oracle(relevance: Tensor, rollouts: Rollouts) -> Tensor:
    """Where the verdict on the final image comes from, the same at every step, (T, B, h, w); uniform where nothing was found.

    Only the shape of ``relevance`` is used.
    """
    assert rollouts.places is not None
    return _above_floor(rollouts.places).expand_as(relevance)


@needing("whole_epoch", "places")
def oracle_twins(relevance: Tensor, rollouts: Rollouts) -> Tensor:
    """The mean of :func:`oracle` over the other rollouts of the same prompt, the same at every step, (T, B, h, w).

    It is uniform where nothing was found, and for a rollout without others. A map of a rollout's own final image depends on
    the noise that it weights, so the weighted score has a nonzero mean and pulls elsewhere than towards the reward. The images
    of other rollouts do not depend on that noise, so the mean stays 0. They still tell where things are, if the rollouts of a
    prompt start from the same latent (``sampling.same_latent``).

    Raises:
        ValueError: the prompts are not known.
    """
    places = rollouts.places
    assert places is not None
    if not rollouts.prompts:
        raise ValueError("oracle_twins needs the prompt of each rollout")
    prompts = torch.tensor(rollouts.prompts, device=places.device)
    same = (prompts[:, None] == prompts).to(places)
    same.fill_diagonal_(0)
    others = torch.einsum("ij,jhw->ihw", same, places) / same.sum(1).clamp(min=1)[:, None, None]
    return _above_floor(others).expand_as(relevance)


@needing("places")
def background(relevance: Tensor, rollouts: Rollouts) -> Tensor:
    """Where the verdict on the final image does not come from, the same at every step, (T, B, h, w).

    It is uniform where nothing was found. Only the shape of ``relevance`` is used.
    """
    assert rollouts.places is not None
    return _above_floor(1 - rollouts.places).expand_as(relevance)


def _above_floor(shares: Tensor) -> Tensor:
    return FLOOR + (1 - FLOOR) * shares


def donors(prompts: Sequence[int], keys: Sequence[int], seed: int) -> list[int]:
    """For each rollout the index of the one whose map it gets: a permutation that never stays within a prompt.

    Rollouts are laid out in a circle prompt by prompt, prompts and members in an order drawn from the seed. Each takes the
    map of the one that is ahead of it by the size of the largest group.

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
            "use more prompts an epoch (train.groups), none with more than half of the rollouts"
        )
    places = {prompt: _draw(seed, 0, prompt) for prompt in set(prompts)}
    order = sorted(range(len(keys)), key=lambda i: (places[prompts[i]], prompts[i], _draw(seed, 1, keys[i]), keys[i]))
    result = [0] * len(order)
    for place, rollout in enumerate(order):
        result[rollout] = order[(place + shift) % len(order)]
    return result


def _draw(*key: int) -> float:
    return np.random.default_rng(key).random()


def _in_order_of_field(relevance: Tensor, key: int, seed: int) -> Tensor:
    """One rollout's map (T, h, w) for :func:`randomised`."""
    noise = np.random.default_rng((seed, 2, key)).standard_normal(relevance.shape)
    field = gaussian_filter(noise, [SMOOTHNESS * size for size in relevance.shape], mode="wrap")
    order = torch.from_numpy(field.ravel().argsort()).to(relevance.device)
    result = torch.empty_like(relevance).flatten()
    result[order] = relevance.flatten().sort().values
    return result.view_as(relevance)
