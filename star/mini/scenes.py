"""The mini world's scenes: coloured shapes on busy backgrounds that no reward looks at, 64 x 64 pixels.

A scene is drawn from a GenEval record (``evaluators.geneval.prompts``) and a generator, so that what a prompt asks for and
what is on the picture are known exactly. The same generator state always draws the same picture.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from evaluators.geneval.prompts import Record
from evaluators.geneval.shapes import RGB, SIZE, shape_mask

# Sides of an object's square in pixels, by the number of objects in the scene.
SIDES = {1: (28, 32, 36), 2: (20, 24), 3: (20,), 4: (20,)}
# Squares start on the grid of the autoencoder's latents: a model of this size does not learn outlines at arbitrary offsets.
GRID, MARGIN, GAP = 4, 2, 4


@dataclass(frozen=True)
class Object:
    """One drawn object: its class, colour word, coverage mask (SIZE, SIZE) in [0, 1] and box (x0, y0, x1, y1)."""

    name: str
    color: str
    mask: np.ndarray
    box: tuple[int, int, int, int]


def draw_scene(record: Record, rng: np.random.Generator, haze: float = 0.0) -> tuple[np.ndarray, list[Object]]:
    """A picture that fulfils a record, as uint8 (SIZE, SIZE, 3), and the objects on it.

    Args:
        haze: the opacity of the objects is drawn from 1 - haze to 1, one value for the whole picture.
    """
    wanted = [clause for clause in record["include"] for _ in range(clause["count"])]
    boxes = _place(wanted, rng)
    canvas = background(rng)
    opacity = 1 - haze * rng.random() if haze else 1.0
    objects = []
    for clause, (left, top, side) in zip(wanted, boxes, strict=True):
        color = clause.get("color") or list(RGB)[rng.integers(len(RGB))]
        mask = shape_mask(clause["class"], left, top, side)
        rows, columns = np.nonzero(mask > 0.5)
        box = (int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1)
        objects.append(Object(clause["class"], color, mask, box))
        canvas += opacity * mask[..., None] * (_paint(color, rng) - canvas)
    return to_uint8(canvas), objects


def background(rng: np.random.Generator) -> np.ndarray:
    """A busy mid-tone ground of low saturation, float (SIZE, SIZE, 3) in [0, 255]: gradient, stripes, noise or checks."""
    y, x = np.mgrid[0:SIZE, 0:SIZE] / SIZE
    angle, period, phase = rng.uniform(0, np.pi), rng.uniform(0.12, 0.4), rng.uniform(0, 2 * np.pi)
    along = x * np.cos(angle) + y * np.sin(angle)
    match rng.integers(4):
        case 0:
            pattern = 2 * (along - along.min()) / np.ptp(along) - 1
        case 1:
            pattern = np.sin(2 * np.pi * along / period + phase)
        case 2:
            grid = Image.fromarray(rng.uniform(-1, 1, (9, 9)).astype(np.float32))
            pattern = np.asarray(grid.resize((SIZE, SIZE), Image.Resampling.BICUBIC))
        case _:
            pattern = np.sign(np.sin(2 * np.pi * x / period + phase) * np.sin(2 * np.pi * y / period + phase))
    tone = rng.uniform(105, 160) + rng.uniform(-14, 14, 3)
    return tone + rng.uniform(6, 18) * pattern[..., None] + rng.normal(0, 2, (SIZE, SIZE, 1))


def _place(wanted: list[dict], rng: np.random.Generator) -> list[tuple[float, float, float]]:
    """(left, top, side) per object: inside the picture, apart from each other, relations clearly fulfilled."""
    for _ in range(2000):
        sides = rng.choice(SIDES[len(wanted)], len(wanted))
        low, high = _regions(wanted, rng)
        cells = (high - low - GAP - sides[:, None]) // GRID + 1
        corners = low + MARGIN + GRID * rng.integers(0, cells)
        centres = corners + sides[:, None] / 2
        apart = all(
            np.abs(centres[i] - centres[j]).max() >= (sides[i] + sides[j]) / 2 + GAP
            for i in range(len(wanted))
            for j in range(i)
        )
        if apart and all(_related(clause, centres, k) for k, clause in enumerate(wanted)):
            return [(x, y, side) for (x, y), side in zip(corners.tolist(), sides.tolist(), strict=True)]
    raise ValueError(f"no room for {len(wanted)} objects of {max(sides)} pixels on a picture of {SIZE}")


def _regions(wanted: list[dict], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Upper left and lower right corners (N, 2) of the part of the picture that each object stands in.

    One object, and objects with a relation, may stand anywhere. Two stand in the left and the right half, in the order of the
    words, and three or four in a quarter each: if nothing said which object goes where, a model of this size would draw one
    shape that is half of each.
    """
    count, half = len(wanted), SIZE // 2
    if count == 1 or any("position" in clause for clause in wanted):
        return np.zeros((count, 2), int), np.full((count, 2), SIZE)
    if count == 2:
        return np.array([(0, 0), (half, 0)]), np.array([(half, SIZE), (SIZE, SIZE)])
    quarters = np.sort(rng.choice(4, count, replace=False))
    low = half * np.stack([quarters % 2, quarters // 2], 1)
    return low, low + half


def _related(clause: dict, centres: np.ndarray, index: int) -> bool:
    if "position" not in clause:
        return True
    relation, target = clause["position"]
    dx, dy = centres[index] - centres[target]
    along, across = (dx, dy) if relation in ("left of", "right of") else (dy, dx)
    return (along < 0) == (relation in ("left of", "above")) and abs(across) < 0.45 * abs(along)


def _paint(color: str, rng: np.random.Generator) -> np.ndarray:
    """The colour of one object with a little jitter and vertical shading, float (SIZE, 1, 3)."""
    shade = np.linspace(-1, 1, SIZE)[:, None, None] * rng.uniform(-8, 8)
    return np.clip(np.array(RGB[color]) + rng.uniform(-9, 9, 3) + shade, 0, 255)


def to_uint8(canvas: np.ndarray) -> np.ndarray:
    """A canvas in [0, 255] as uint8 pixels."""
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8)
