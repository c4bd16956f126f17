"""How an image is prepared for the detector: the test-time preprocessing of mmdet 2.x, bit for bit."""

from typing import NamedTuple

import cv2
import numpy as np
import torch

LONG, SHORT = 1333, 800
DIVISOR = 32
# Padding comes before normalising, so it is this grey and not the mean.
PADDING = 128
# Rounded to float32; the reciprocals are then taken in float64.
MEAN = np.array([[123.675, 116.28, 103.53]], dtype=np.float32).astype(np.float64)
FACTORS = 1 / np.array([[58.395, 57.12, 57.375]], dtype=np.float32).astype(np.float64)


class Prepared(NamedTuple):
    """An image for the network.

    Attributes:
        pixels: float32 (3, H, W) in RGB, H and W multiples of :data:`DIVISOR`.
        kept: height and width without the padding at the bottom and on the right.
        original: height and width of the image itself.
    """

    pixels: torch.Tensor
    kept: tuple[int, int]
    original: tuple[int, int]


def prepare(image: np.ndarray, long: int = LONG, short: int = SHORT) -> Prepared:
    """Resize an image, keeping its proportions, so that it just fits in long x short; pad it; normalise it.

    Args:
        image: uint8 (H, W, 3) in RGB.
        long, short: in pixels; values other than the published ones are for small test networks.
    """
    height, width = image.shape[:2]
    factor = min(long / max(height, width), short / min(height, width))
    kept = int(height * factor + 0.5), int(width * factor + 0.5)
    resized = cv2.resize(image, kept[::-1], interpolation=cv2.INTER_LINEAR)  # of bytes: in fixed point, not antialiased
    bottom, right = (-side % DIVISOR for side in kept)
    padded = np.pad(resized, ((0, bottom), (0, right), (0, 0)), constant_values=PADDING)
    # With OpenCV because mmcv does so: NumPy rounds the last bit differently.
    centred = cv2.subtract(padded.astype(np.float32), MEAN)
    pixels = cv2.multiply(centred, FACTORS)
    return Prepared(torch.from_numpy(pixels).permute(2, 0, 1).contiguous(), kept, (height, width))
