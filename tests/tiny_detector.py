"""A Mask2Former of the detector's kind, but tiny, with random weights that anyone can draw again by their names."""

import json
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from evaluators.geneval.official.convert import Conversion, convert
from evaluators.geneval.official.names import Sizes, derived, window_positions

TINY = Sizes(32, (1, 1, 2, 1), (1, 2, 4, 8), 7, 32, 4, 2, 64, 4, 64, 8, 80)
FULL = Sizes(96, (2, 2, 18, 2), (3, 6, 12, 24), 7, 256, 8, 6, 1024, 9, 2048, 100, 80)
# Sides of the resized images: small, but such that windows, merging and the divisor all need padding.
SIDES = {"long": 167, "short": 100}
IMAGES = {"square": (64, 64), "wide": (60, 90)}
FIXTURE = Path(__file__).with_name("fixtures") / "mmdet.npz"

Shapes = Mapping[str, tuple[int, ...]]


def random_weights(shapes: Shapes) -> dict[str, torch.Tensor]:
    """Weights by the names of mmdet 2.x, of a size that lets signals through and finds objects."""
    return {name: _random(name, shape) for name, shape in shapes.items()}


def _random(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    if derived(name):
        return window_positions(round(shape[0] ** 0.5))
    values = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    if name.endswith("weight") and ("norm" in name or ".gn." in name):
        values = 1 + 0.2 * values
    elif name.endswith("sampling_offsets.bias"):
        values *= 2  # positions
    elif name.endswith("bias"):
        values *= 0.2
    elif not name.endswith(("bias_table", "query_embed.weight", "query_feat.weight", "level_embed.weight")):
        values *= (4 if "cls_embed" in name else 1) / np.sqrt(np.prod(shape[1:]))
    return torch.from_numpy(values.astype(np.float32))


def save_checkpoint(file: Path, shapes: Shapes) -> Path:
    """A checkpoint of mmdet 2.x, with the kind of log that training leaves in it."""
    meta = {"epoch": 50, "CLASSES": ("person",), "loss": np.float64(0.5), "seeds": np.arange(3), "config": "model = dict()"}
    torch.save({"meta": meta, "state_dict": random_weights(shapes), "optimizer": {"state": {0: {"step": 3}}}}, file)
    return file


def save_detector(folder: Path, shapes: Shapes) -> Conversion:
    """A converted tiny detector, folder/detector, and its checkpoint beside it."""
    return convert(save_checkpoint(folder / "tiny.pth", shapes), folder / "detector", any_checkpoint=True)


def image_of(seed: int, height: int, width: int) -> np.ndarray:
    """uint8 (height, width, 3): coarse and fine random structure."""
    rng = np.random.default_rng(seed)
    patches = rng.integers(0, 256, (height // 16 + 1, width // 16 + 1, 3))
    coarse = patches.repeat(16, 0).repeat(16, 1)[:height, :width]
    return np.clip(coarse + rng.normal(0, 20, coarse.shape), 0, 255).astype(np.uint8)


def stored() -> tuple[Shapes, dict[str, np.ndarray]]:
    """What mmdet gave (see make_mmdet_fixture.py): its tensors' shapes by their names in 2.x, and its outputs."""
    with np.load(FIXTURE) as arrays:
        content = dict(arrays)
    return {name: tuple(shape) for name, shape in json.loads(str(content.pop("shapes"))).items()}, content
