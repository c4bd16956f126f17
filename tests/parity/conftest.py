"""Comparisons with the original implementations; tox -e parity and parity-open-clip install them. Otherwise skipped."""

from importlib.util import find_spec
from pathlib import Path

import torch


def declare_operators() -> torch.library.Library | None:
    """Let a torchvision be imported whose operators were compiled for another build of torch; nothing here calls them."""
    spec = find_spec("torchvision")
    if spec is None or spec.origin is None:
        return None
    try:
        for compiled in Path(spec.origin).parent.glob("_C*.so"):
            torch.ops.load_library(str(compiled))
    except OSError:
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return library
    return None


operators = declare_operators()  # gone when nothing refers to them
