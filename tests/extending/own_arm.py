"""An arm of one's own, as docs/extending.md tells it: STAR's map, but only where it is above its mean."""

from torch import Tensor

from star.method.arms import Rollouts


def peaks(relevance: Tensor, rollouts: Rollouts) -> Tensor:
    """The relevance less its mean over (T, h, w), cut at 0; (T, B, h, w) in and out."""
    return (relevance - relevance.mean((0, 2, 3), keepdim=True)).clamp(min=0)
