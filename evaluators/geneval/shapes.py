"""The shapes and colours of the mini world, 64 x 64 pixels: what its pictures are drawn with and its detector looks for."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

SIZE = 64
RGB = {
    "red": (215, 35, 35),
    "orange": (245, 135, 15),
    "yellow": (240, 222, 40),
    "green": (35, 155, 60),
    "blue": (45, 80, 215),
    "purple": (140, 45, 175),
    "black": (18, 18, 18),
    "white": (246, 246, 246),
}
SUPERSAMPLING = 4


def shape_mask(name: str, left: float, top: float, side: float) -> np.ndarray:
    """Coverage in [0, 1] of one shape whose bounding square starts at (left, top), float32 (SIZE, SIZE)."""
    scale = SUPERSAMPLING
    image = Image.new("L", (SIZE * scale, SIZE * scale))
    pen = ImageDraw.Draw(image)

    def at(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
        return [((left + px * side) * scale, (top + py * side) * scale) for px, py in points]

    match name:
        case "circle":
            pen.ellipse(at([(0, 0)])[0] + at([(1, 1)])[0], fill=255)
        case "ring":
            pen.ellipse(at([(0, 0)])[0] + at([(1, 1)])[0], fill=255)
            pen.ellipse(at([(0.27, 0.27)])[0] + at([(0.73, 0.73)])[0], fill=0)
        case _:
            pen.polygon(at(POLYGONS[name]), fill=255)
    return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BOX), dtype=np.float32) / 255


def _star() -> list[tuple[float, float]]:
    angles = np.arange(10) * np.pi / 5 - np.pi / 2
    radii = np.where(np.arange(10) % 2, 0.22, 0.52)
    return [(0.5 + r * np.cos(a), 0.54 + r * np.sin(a)) for a, r in zip(angles, radii, strict=True)]


def _heart() -> list[tuple[float, float]]:
    t = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return [(0.5 + px / 33, 0.45 - py / 33) for px, py in zip(x, y, strict=True)]


POLYGONS = {
    "square": [(0.06, 0.06), (0.94, 0.06), (0.94, 0.94), (0.06, 0.94)],
    "triangle": [(0.5, 0.04), (1, 0.96), (0, 0.96)],
    "diamond": [(0.5, 0), (0.9, 0.5), (0.5, 1), (0.1, 0.5)],
    "cross": [(a, b) for a, b in (
        (0.33, 0), (0.67, 0), (0.67, 0.33), (1, 0.33), (1, 0.67), (0.67, 0.67),
        (0.67, 1), (0.33, 1), (0.33, 0.67), (0, 0.67), (0, 0.33), (0.33, 0.33))],
    "star": _star(),
    "heart": _heart(),
}  # fmt: skip
