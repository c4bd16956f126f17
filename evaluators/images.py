"""Reading image files."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from star.common.errors import UserError


def read_image(path: Path) -> np.ndarray:
    """A picture as uint8 (H, W, 3) in RGB, turned as its EXIF data says.

    Raises:
        UserError: the file is missing or is no picture.
    """
    try:
        with Image.open(path) as image:
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except (OSError, ValueError, SyntaxError) as error:  # Pillow reports a broken PNG with any of the three
        raise UserError(f"cannot read the image {path}: {error}") from error
