"""From the network's logits to objects: the post-processing of mmdet 2.x's Mask2Former."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

from evaluators.geneval.official.preprocess import Prepared

LIMIT = 100


class Instances(NamedTuple):
    """The objects of an image, one per (query, class) pair, in no particular order.

    Attributes:
        labels: int64 (n,), index into COCO's classes.
        scores: float32 (n,), class probability times mask score.
        boxes: float32 (n, 4), x0, y0, x1, y1 in pixels of the image, x1 and y1 exclusive; zeros for an empty mask.
        masks: bool (n, H, W), of the image's size.
    """

    labels: torch.Tensor
    scores: torch.Tensor
    boxes: torch.Tensor
    masks: torch.Tensor


def instances(class_logits: torch.Tensor, mask_logits: torch.Tensor, image: Prepared, floor: float = 0.0) -> Instances:
    """The best :data:`LIMIT` pairs of query and class.

    Args:
        class_logits: (queries, classes + 1), "no object" last.
        mask_logits: (queries, h, w), a quarter of the network's input in height and width.
        image: what the network got.
        floor: pairs whose class probability is not above it are left out. Their score would not be above it either, since
            a mask score is at most 1.
    """
    probabilities = class_logits.softmax(dim=-1)[:, :-1]
    classes = probabilities.shape[1]
    best, pairs = probabilities.flatten().topk(min(LIMIT, probabilities.numel()), sorted=False)
    best, pairs = best[best > floor], pairs[best > floor]
    queries, which = torch.unique(pairs // classes, return_inverse=True)
    logits = _full_size(mask_logits[queries], image)
    masks = logits > 0
    inside = masks.float()
    areas = inside.flatten(1).sum(1) + 1e-6
    mask_scores = (logits.sigmoid() * inside).flatten(1).sum(1) / areas
    return Instances(pairs % classes, best * mask_scores[which], _boxes(masks)[which], masks[which])


def _full_size(logits: torch.Tensor, image: Prepared) -> torch.Tensor:
    """Mask logits resized to the image: first to the network's input, then, with its padding cut off, to the image."""
    if not len(logits):
        return logits.new_zeros((0, *image.original))
    logits = _resize(logits, image.pixels.shape[-2:])[:, : image.kept[0], : image.kept[1]]
    return _resize(logits, image.original)


def _resize(logits: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    return F.interpolate(logits[:, None], size=tuple(size), mode="bilinear", align_corners=False)[:, 0]


def _boxes(masks: torch.Tensor) -> torch.Tensor:
    """The tight bounds of masks, (n, 4); zeros for an empty one."""
    edges = []
    for axis in (1, 2):  # columns, then rows
        hit = masks.any(dim=axis)
        length = hit.shape[1]
        first = hit.int().argmax(dim=1)
        last = length - hit.flip(1).int().argmax(dim=1)
        edges.append((first, last))
    (x0, x1), (y0, y1) = edges
    boxes = torch.stack([x0, y0, x1, y1], dim=1).float()
    return boxes * masks.flatten(1).any(dim=1)[:, None]
