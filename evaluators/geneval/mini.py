"""The detector of the mini world: classical image processing, no weights.

An object of the mini world has one plain colour and stands on a mid-tone background of low saturation, the ground. Every
pixel is modelled as a mixture of the ground and one palette colour; the share of that colour is its coverage. Pixels that
are covered by more than half form regions of one colour. A region is compared with the eight shapes, each moved and scaled
to its centroid and area: ragged outlines hardly shift these, but a bounding box jumps with every stray pixel.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np
from scipy import ndimage
from skimage.color import rgb2lab

from evaluators.geneval.rules import Detection
from evaluators.geneval.shapes import POLYGONS, RGB, SIZE, shape_mask
from star.common.errors import UserError

SHAPES = ("circle", "ring", *POLYGONS)
COLORS = tuple(RGB)
INKS = np.array(list(RGB.values()), dtype=np.float32)

# Ground is what is neither saturated nor dark nor bright. Where there is hardly any, the world's mean is assumed.
PLAIN_SPREAD, PLAIN_TONES, MEAN_TONE = 60, (60, 210), 132.0
MIN_GROUND = 0.05
# Smallest and largest region that can be an object, in pixels: not a speck, nor an all-black picture as a black square.
MIN_AREA, MAX_AREA = 40, SIZE * SIZE // 2
# Coverage is stretched before the comparison, so that noise in the ground and the width of a blurred edge do not count.
LOW, HIGH = 0.3, 0.7
# The comparison samples GRID x GRID points of a window that is WINDOW times the side of the template.
GRID, WINDOW = 32, 1.5
# Mismatch at which a shape is as likely as "no shape", and the change of mismatch that changes the odds by a factor of e.
# Freshly drawn objects have 0.01 to 0.04; warped by half a pixel 0.02 to 0.08, by one 0.04 to 0.15, by two 0.06 to 0.26:
# an object whose outline wobbles by a pixel still counts as one, as people would say.
NOTHING, TEMPERATURE = 0.12, 0.012


class MiniDetector:
    """Finds the shapes of ``star.mini.scenes`` (see :class:`~evaluators.geneval.detector.Detector`).

    Scores are the probability of the best shape in a softmax over the eight shapes' mismatches and a constant one for
    "no shape": near 1 for a clear shape, lower for one between two shapes, near 0 for a blob.
    """

    name = "mini-2"
    classes = SHAPES
    colors = COLORS

    def __call__(self, images: Sequence[np.ndarray]) -> list[dict[str, list[Detection]]]:
        """Class -> objects with colours and masks, per image, uint8 (64, 64, 3).

        Raises:
            UserError: an image has another size.
        """
        return [_detect(image) for image in images]

    def with_colors(self, image: np.ndarray, name: str, detections: Sequence[Detection]) -> list[Detection]:
        """The detections unchanged: they already have their colours."""
        return list(detections)


def _detect(image: np.ndarray) -> dict[str, list[Detection]]:
    if image.shape != (SIZE, SIZE, 3):
        raise UserError(f"the mini detector reads RGB images of {SIZE} x {SIZE} pixels, got the shape {image.shape}")
    found = defaultdict(list)
    pixels = image.astype(np.float32)
    color, coverage = _unmix(pixels)
    for region in _regions(color, coverage):
        errors = _mismatch(np.where(ndimage.binary_dilation(region), coverage, 0))  # with its soft outline
        odds = np.exp((errors.min() - np.append(errors, NOTHING)) / TEMPERATURE)
        rows, columns = np.nonzero(region)
        box = (float(columns.min()), float(rows.min()), float(columns.max() + 1), float(rows.max() + 1))
        detection = Detection(box, float(1 / odds.sum()), _name_color(pixels[region], coverage[region]), region)
        found[SHAPES[errors.argmin()]].append(detection)
    return dict(found)


def _unmix(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The palette colour that explains each pixel best as a mixture with the ground, and its share, (SIZE, SIZE)."""
    spread, tone = np.ptp(pixels, axis=-1), pixels.mean(axis=-1)
    plain = pixels[(spread < PLAIN_SPREAD) & (tone > PLAIN_TONES[0]) & (tone < PLAIN_TONES[1])]
    ground = np.median(plain, axis=0) if len(plain) > MIN_GROUND * tone.size else np.float32(MEAN_TONE)
    directions = INKS - ground
    offsets = pixels - ground
    lengths = (directions**2).sum(axis=1)
    along = offsets @ directions.T
    shares = np.clip(along / lengths, 0, 1)
    # The squared distance to the mixture, less the squared offset that all colours have in common.
    distances = shares * (shares * lengths - 2 * along)
    color = distances.argmin(axis=-1)
    return color, np.take_along_axis(shares, color[..., None], axis=-1)[..., 0]


def _regions(color: np.ndarray, coverage: np.ndarray) -> Iterator[np.ndarray]:
    """The masks, bool (SIZE, SIZE), of connected pixels of one colour that cover their ground by more than half."""
    planes = (coverage > 0.5) & (color == np.arange(len(COLORS))[:, None, None])
    within_plane = np.zeros((3, 3, 3), dtype=bool)
    within_plane[1] = True
    labels, _ = ndimage.label(planes, within_plane)
    areas = np.bincount(labels.ravel())
    areas[0] = 0
    for label in np.flatnonzero((areas >= MIN_AREA) & (areas <= MAX_AREA)):
        yield (labels == label).any(axis=0)


def _name_color(pixels: np.ndarray, coverage: np.ndarray) -> str:
    """The palette colour nearest in CIELAB to the mean of the pixels away from the outline."""
    inner = pixels[coverage >= np.median(coverage)].mean(axis=0)
    lab = rgb2lab(np.vstack([inner, INKS]) / 255)
    return COLORS[np.linalg.norm(lab[1:] - lab[0], axis=1).argmin()]


def _mismatch(coverage: np.ndarray) -> np.ndarray:
    """How much a region differs from each shape, (8,); 0 for the same outline.

    The area in which region and shape differ could be divided by the shape's area, which is hard on stars and rings, or
    by its perimeter (giving the mean distance of the outlines), which is soft on them. Dividing by the geometric mean of
    the two treats all shapes most alike.
    """
    templates, areas, perimeters = _templates()
    coverage = _stretch(coverage)
    windows = _sample(coverage, np.sqrt(coverage.sum() / areas))
    differing = np.abs(windows - templates).sum(axis=(1, 2)) * (WINDOW / GRID) ** 2
    return differing / np.sqrt(areas * perimeters)


@cache
def _templates() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Windows (8, GRID, GRID), areas and perimeters (8,) in units of the side, of shapes as soft as small objects."""
    side, softness = 30, 0.9
    masks = [shape_mask(name, (SIZE - side) / 2, (SIZE - side) / 2, side) for name in SHAPES]
    masks = [_stretch(ndimage.gaussian_filter(mask, softness)) for mask in masks]
    windows = np.concatenate([_sample(mask, np.array([side])) for mask in masks])
    areas = np.array([mask.sum() for mask in masks]) / side**2
    perimeters = np.array([np.hypot(*np.gradient(mask)).sum() for mask in masks]) / side
    return windows, areas, perimeters


def _sample(coverage: np.ndarray, sides: np.ndarray) -> np.ndarray:
    """Windows around the centroid, one per side length in pixels, (len(sides), GRID, GRID)."""
    total = coverage.sum()
    row, column = (float(coverage.sum(axis=1 - axis) @ np.arange(SIZE) / total) for axis in (0, 1))
    steps = sides[:, None] * WINDOW * ((np.arange(GRID) + 0.5) / GRID - 0.5)
    rows, columns = np.broadcast_arrays((row + steps)[:, :, None], (column + steps)[:, None, :])
    return ndimage.map_coordinates(coverage, [rows, columns], order=1, mode="constant")


def _stretch(coverage: np.ndarray) -> np.ndarray:
    return np.clip((coverage - LOW) / (HIGH - LOW), 0, 1)
