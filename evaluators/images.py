"""Reading image files: as people see them, or not at all."""

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageFile, ImageOps

from star.common.errors import UserError, one_line
from star.common.files import visible

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
OTHERS = (
    *(".gif", ".tif", ".tiff", ".avif", ".heic", ".heif", ".jp2", ".j2k", ".jxl", ".tga", ".ppm", ".pgm", ".pnm", ".dds"),
    *(".ico", ".jfif", ".jif", ".jpe", ".apng", ".psd", ".exr", ".qoi", ".svg"),
)
"""Suffixes of pictures that are not read."""
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
"""The formats that are read, whatever a file is called: Pillow's other decoders are for files that no model writes."""

MOST_PIXELS = 2**26
LONGEST = 50
"""Largest ratio of the long to the short side: models scale the short one up, and the long one with it."""

MISJUDGED = ("L;2", "L;4", "I;16B", "RGB;16B")
"""How a PNG's pixels are stored where Pillow compares the transparent colour with pixels that it has scaled, or not at all."""

GAMMA, GAMMA_TOLERANCE = 1 / 2.2, 0.02
PRIMARIES = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)
"""sRGB's white, red, green and blue as a PNG writes them, x and y of each; others may be off by rounding."""
PRIMARIES_TOLERANCE = 0.01
PROBES = Image.fromarray(np.indices((4, 4, 4), np.uint8).reshape(3, 1, -1).transpose(1, 2, 0) * 85)
PROBES_TOLERANCE = 2
"""A profile that changes these colours by no more is one of sRGB, whatever its name: rounding is all that is left."""
SPACES = {"RGB": ("RGB", ["1", "L", "LA", "P", "RGB", "RGBA"]), "GRAY": ("L", ["1", "L", "LA"]), "CMYK": ("CMYK", ["CMYK"])}
"""Colour space of a profile -> the Pillow mode that it describes, and the modes of pictures that it fits."""


def images_in(folder: Path) -> list[Path]:
    """The files of a folder whose suffix is an image's, in the order of their names; hidden ones are ignored.

    Raises:
        OSError: the folder cannot be read.
        UserError: it also holds pictures of a kind that is not read, which would be left out.
    """
    files = visible(path for path in folder.iterdir() if not path.is_dir())
    if others := [file for file in files if file.suffix.lower() in OTHERS]:
        raise UserError(
            f"{others[0]} is a picture of a kind that is not read ({', '.join(SUFFIXES)} are); convert it or move it elsewhere"
        )
    return [file for file in files if file.suffix.lower() in SUFFIXES]


def batches(files: Sequence[Path], most: int) -> Iterator[slice]:
    """Parts of a list of pictures: at most so many, and together no more pixels than one may have by itself."""
    start, pixels = 0, 0
    for place, size in enumerate(map(_size, files)):
        if start < place and (place - start == most or pixels + size > MOST_PIXELS):
            yield slice(start, place)
            start, pixels = place, 0
        pixels += size
    yield slice(start, len(files))


def _size(path: Path) -> int:
    """A picture's pixels, 0 if it cannot be read: :func:`read_image` says why."""
    with warnings.catch_warnings(), suppress(Exception):
        warnings.simplefilter("ignore")
        if path.is_file():
            with Image.open(path, formats=FORMATS) as image:
                return image.width * image.height
    return 0


def read_image(path: Path) -> np.ndarray:
    """A picture as uint8 (H, W, 3) in sRGB: turned as its EXIF data says, 16 bits scaled to 8, colours as its profile says.

    HDR pictures (PNG's cICP) are read as if they were sRGB: Pillow does not tell them apart.

    Raises:
        UserError: the file is missing, damaged or no picture, or cannot be shown unambiguously in 8-bit RGB: it is
            animated, transparent or has its own gamma curve or primary colours; or it is too large.
    """
    try:
        if not path.is_file():  # opening a pipe would block
            raise FileNotFoundError("no such file")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd metadata; what matters is refused below
            with Image.open(path, formats=FORMATS) as image:
                image.verify()  # a PNG's checksums, which Pillow passes over where it decodes; it cannot be decoded afterwards
            with Image.open(path, formats=FORMATS) as image:
                return _pixels(image, path)
    except UserError:
        raise
    except Exception as error:  # a damaged file makes Pillow raise nearly anything
        reason = one_line(error) or type(error).__name__
        raise UserError(f"cannot read the image {path}: {reason}") from error


def _pixels(image: ImageFile.ImageFile, path: Path) -> np.ndarray:
    stored = _stored(image)
    if fault := _fault(image, stored):
        raise UserError(f"cannot take the image {path}: {fault}")
    turned = ImageOps.exif_transpose(image)
    return np.asarray(_converted(turned.convert("LA") if stored == "LA;16B" else turned))  # Pillow makes that RGBA


def _stored(image: ImageFile.ImageFile) -> str:
    """How a PNG stores its pixels, in Pillow's words; to be asked before they are loaded. Empty for other formats."""
    return str(image.tile[0].args) if image.format == "PNG" and image.tile else ""


def _fault(image: Image.Image, stored: str) -> str:
    """Why a picture's look is ambiguous, or its size beyond the limits; empty if neither."""
    short, long = min(image.size), max(image.size)
    if short * long > MOST_PIXELS or long > LONGEST * short:
        size = f"it is {image.width} x {image.height} pixels"
        return f"{size}; at most {MOST_PIXELS:,} are read, and a long side of at most {LONGEST} times the short one"
    pictures: int = getattr(image, "n_frames", 1)
    if pictures > 1 and image.format != "MPO":  # there the others are depth maps or previews
        return f"it moves ({pictures} pictures in one file); save the one that is meant"
    if stored in MISJUDGED and "transparency" in image.info:
        return "it marks a colour as transparent in 2, 4 or 16 bits, which is not read; save it without transparency"
    if image.has_transparency_data and np.asarray(image.convert("RGBA"))[..., 3].min() < 255:
        return "parts of it are transparent, and what they show depends on the ground; save it without transparency"
    if {"srgb", "icc_profile"} & image.info.keys():  # which count for more than what follows
        return ""
    gamma, primaries = image.info.get("gamma", GAMMA), image.info.get("chromaticity", PRIMARIES)
    if abs(gamma - GAMMA) > GAMMA_TOLERANCE:
        return f"it has a brightness curve of its own (gamma {gamma:g}); save it as sRGB"
    if not np.allclose(primaries, PRIMARIES, 0, PRIMARIES_TOLERANCE):
        return "it has primary colours of its own (PNG's cHRM); save it as sRGB"
    return ""


def _converted(image: Image.Image) -> Image.Image:
    """The picture in RGB."""
    if image.mode.startswith("I"):  # 16 bits, which Pillow would clip; keep the upper 8, as it does for 16-bit RGB
        narrow = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        narrow.info, image = image.info, narrow
    if stored := image.info.get("icc_profile"):
        profile = ImageCms.ImageCmsProfile(io.BytesIO(stored))
        mode, fitting = SPACES.get(profile.profile.xcolor_space.strip(), ("", []))
        # One that does not fit is left over from another version of the picture; cv2.imread ignores it too.
        if image.mode in fitting and not (mode == "RGB" and _is_srgb(profile)):
            return _turned(image.convert(mode), profile)
    return image.convert("RGB")


def _is_srgb(profile: ImageCms.ImageCmsProfile) -> bool:
    """Whether a profile means sRGB, by what it does: names are given to anything."""
    before, after = (np.asarray(image, np.int16) for image in (PROBES, _turned(PROBES, profile)))
    return bool(np.abs(after - before).max() <= PROBES_TOLERANCE)


def _turned(image: Image.Image, profile: ImageCms.ImageCmsProfile) -> Image.Image:
    turned = ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    assert turned is not None  # None is returned only with inPlace=True
    return turned
