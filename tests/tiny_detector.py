"""A Mask2Former of the detector's kind, but tiny, with random weights that everyone can draw again by their names."""

import json
import zlib
from pathlib import Path

import numpy as np
import torch

from evaluators.geneval.official.names import Sizes

TINY = Sizes(32, (1, 1, 2, 1), (1, 2, 4, 8), 7, 32, 4, 2, 64, 4, 64, 8, 80)
# Sides of the resized images: small, but with every kind of padding.
SIDES = {"long": 167, "short": 100}
FIXTURE = Path(__file__).with_name("fixtures") / "mmdet.npz"


def tensor_of(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Random values that depend on name and shape alone, of a size that lets signals through and makes objects."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    values = rng.standard_normal(shape)
    if ("norm" in name or ".gn." in name) and name.endswith("weight"):
        values = 1 + 0.2 * values
    elif "bias_table" in name or "embed.weight" in name and "panoptic_head" in name and "cls" not in name:
        pass
    elif name.endswith("sampling_offsets.bias"):
        values *= 2
    elif name.endswith("bias"):
        values *= 0.2
    else:
        values *= np.prod(shape[1:]) ** -0.5 * (4 if "cls_embed" in name else 1)
    return torch.from_numpy(values.astype(np.float32))


def weights_of(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    return {name: tensor_of(name, tuple(shape)) for name, shape in shapes.items()}


def image_of(seed: int, height: int, width: int) -> np.ndarray:
    """uint8 (height, width, 3): coarse and fine random structure."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 16 + 1, width // 16 + 1, 3)).repeat(16, 0).repeat(16, 1)[:height, :width]
    return np.clip(coarse + rng.normal(0, 20, coarse.shape), 0, 255).astype(np.uint8)


def stored() -> tuple[dict[str, tuple[int, ...]], dict[str, np.ndarray]]:
    """What mmdet gave: its names and shapes, and the arrays."""
    with np.load(FIXTURE) as arrays:
        content = dict(arrays)
    return {name: tuple(shape) for name, shape in json.loads(str(content.pop("shapes"))).items()}, content
