"""Maps after other published works that give credit to places, for comparison in one trainer (makers for
:mod:`star.method.arms`).

Only the map is taken from each work: scaling to mean 1, cap, mix and ratio are those of STAR's arms, so that what differs is
where the credit goes. ``docs/neighbours`` describes what was published and where these differ from it. All maps are made from
the final image and are the same at every step; only the shape of ``relevance`` is used.
"""

from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from evaluators.pickscore.score import PickScore, engine
from star.common.errors import UserError
from star.method.arms import Rollouts, needing

TEMPERATURE = 0.1
"""Temperature of SGA's sigmoid, as published."""


@needing("images")
def vipo(relevance: Tensor, rollouts: Rollouts) -> Tensor:
    """What stands out in a frozen network's features of the final image, after ViPO (arXiv 2511.18719); (T, B, h, w).

    See :func:`saliency`; the features are those of the mini world's small CLIP.

    Raises:
        UserError: they are not of the mini world's size.
    """
    images = rollouts.images
    assert images is not None
    extractor = _extractor()
    side = extractor.model.config.vision_config.image_size
    if images.shape[1:3] != (side, side):
        raise UserError(f"method.arm=vipo sees by the mini world's CLIP, images of {side} x {side} pixels; use scale=mini")
    maps = saliency(extractor.patches(list(images.cpu().numpy())))
    height, width = relevance.shape[2:]
    return adaptive_avg_pool2d(maps, (height, width)).to(relevance).expand_as(relevance)


@needing("slopes")
def sga(relevance: Tensor, rollouts: Rollouts) -> Tensor:
    """Lower where the reward's gradient with respect to the final image is large, as in SGA-Flow-GRPO's code; (T, B, h, w).

    See :func:`gradient_map`.
    """
    return _gradient_map(relevance, rollouts, -1.0)


@needing("slopes")
def sga_flipped(relevance: Tensor, rollouts: Rollouts) -> Tensor:
    """:func:`sga` with the other sign: higher where the gradient is large; (T, B, h, w)."""
    return _gradient_map(relevance, rollouts, 1.0)


def saliency(features: Tensor) -> Tensor:
    """The first principal component of each image's own patch features, min-max scaled to [0, 1].

    The sign of a component is arbitrary: here it is the one by which few patches stand out from many (third moment >= 0).

    Args:
        features: (B, rows, columns, width).

    Returns:
        (B, rows, columns); 1 everywhere where all patches are alike.
    """
    patches = features.flatten(1, 2).double()
    centred = patches - patches.mean(1, keepdim=True)
    direction = torch.linalg.svd(centred, full_matrices=False).Vh[:, 0]
    along = (centred * direction[:, None]).sum(-1)
    along = along * torch.where(along.pow(3).sum(1, keepdim=True) < 0, -1.0, 1.0)
    low, high = along.amin(1, keepdim=True), along.amax(1, keepdim=True)
    constant = high - low <= 1e-9 * (1 + patches.abs().amax((1, 2))[:, None])
    return torch.where(constant, 1.0, (along - low) / (high - low)).view(features.shape[:3])


def gradient_map(slopes: Tensor, sign: float, tokens: tuple[int, int]) -> Tensor:
    """``mean over the token of sigmoid(sign z / T)``, shifted so that its maximum is 1 (SGA-Flow-GRPO, arXiv 2609.32340).

    Here ``z = (m - median) / MAD``, where m is the length of the gradient at each pixel of an image.

    Args:
        slopes: (B, H, W, 3).
        sign: -1 as published: pixels with a large gradient get less; or 1.
        tokens: (h, w).

    Returns:
        (B, h, w), the largest value of each is 1; 1 everywhere where the MAD is 0.
    """
    lengths = slopes.double().norm(dim=-1)
    middle = lengths.flatten(1).median(1).values[:, None, None]
    spread = (lengths - middle).abs().flatten(1).median(1).values[:, None, None]
    z = torch.where(spread > 0, (lengths - middle) / spread, 0)
    averaged = adaptive_avg_pool2d(torch.sigmoid(sign * z / TEMPERATURE), tokens)
    return averaged + 1 - averaged.amax((1, 2), keepdim=True)


def _gradient_map(relevance: Tensor, rollouts: Rollouts, sign: float) -> Tensor:
    assert rollouts.slopes is not None
    height, width = relevance.shape[2:]
    return gradient_map(rollouts.slopes, sign, (height, width)).to(relevance).expand_as(relevance)


@cache
def _extractor() -> PickScore:
    """The small CLIP that ships with this package."""
    return engine("mini")
