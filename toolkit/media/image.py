"""Converts images to the vision tower's pixels, equal to those of transformers' Gemma 3n processor."""

from __future__ import annotations

import warnings
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from toolkit.base.errors import UsageError
from toolkit.media.limits import MAX_PIXELS
from toolkit.media.source import MediaSource, errors_about_source, open_source

IMAGE_SIZE = 768
"""`size` in preprocessor_config.json of google/gemma-3n-E2B-it."""

MAX_BYTES = 1 << 30
"""The most memory for decoding and scaling: enough for MAX_PIXELS in a usual shape; narrow images with many rows need
more."""

_FORMATS = (
    *("AVIF", "BMP", "DDS", "DIB", "GIF", "ICNS", "ICO", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "PSD", "QOI"),
    *("SGI", "TGA", "TIFF", "WEBP"),
)
"""Pillow's other formats are not raster images, or start a program, as EPS starts Ghostscript."""

_REMEDY = "give a whole image in a format such as PNG, JPEG, WebP, GIF, BMP or TIFF"

_ORIENTATION_TAG = 0x0112
# EXIF 2.32, 4.6.4: the transposition that moves row 0 to the top and column 0 to the left, by orientation.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def load_levels(source: MediaSource, size: int = IMAGE_SIZE) -> NDArray[np.uint8]:
    """Load an image, given as a path or as a file's bytes, as RGB levels uint8[1, size, size, 3].

    As in transformers' `load_image` and Gemma 3n's processor, the EXIF orientation is applied, an animation gives its
    first frame, the alpha channel is dropped (the colours under it show), and the image is stretched to a square.
    Unlike in transformers, 16-bit grey and float pixels keep their range instead of being clipped at 255. UsageError
    for anything that is not an image, is truncated, has more than MAX_PIXELS, or needs more than MAX_BYTES of memory.
    """
    with errors_about_source(source, "image"), open_source(source) as file:
        image = _decode(file, size)
    # Pillow's filter is antialiased and rounds to uint8, like the images that the model was trained on.
    resized = image.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(resized, np.uint8)[np.newaxis]


def _decode(file: BinaryIO, size: int) -> Image.Image:
    """The first frame, upright, in mode RGB."""
    try:
        with warnings.catch_warnings():
            # Pillow warns about large images, which are checked here, and about damage; if it matters, Pillow raises.
            warnings.simplefilter("ignore")
            image = _open(file)
            _check_memory(image, size)
            image.load()
            # After load(), because a PNG may have its EXIF data after the pixels, and load() itself rotates a TIFF.
            turn = _UPRIGHT.get(image.getexif().get(_ORIENTATION_TAG, 1))
            rgb = _to_rgb(image)
            return rgb if turn is None else rgb.transpose(turn)
    except UsageError:
        raise
    # For broken files, Pillow raises nearly every built-in exception.
    except Exception as error:
        raise UsageError(found=f"cannot be decoded ({error})", remedy=_REMEDY) from error


def _open(file: BinaryIO) -> Image.Image:
    """Open an image and check its size; the pixels are not read yet."""
    Image.init()
    too_large = {"wanted": f"at most {MAX_PIXELS:,} pixels", "remedy": "scale it down"}
    try:
        image = Image.open(file, formats=[kind for kind in _FORMATS if kind in Image.OPEN])
    except Image.DecompressionBombError as error:
        raise UsageError(found=error, **too_large) from error
    except UnidentifiedImageError as error:
        found = "an empty file" if not file.seek(0, 2) else "not an image of a known format"
        raise UsageError(found=found, remedy=_REMEDY) from error
    if image.width * image.height > MAX_PIXELS:
        raise UsageError(found=f"{image.width:,} x {image.height:,} pixels", **too_large)
    return image


def _check_memory(image: Image.Image, size: int) -> None:
    """Raise UsageError if decoding and scaling would take more than MAX_BYTES; only the header has been read yet."""
    # Pillow keeps 4 bytes a pixel and a pointer a row; wide numbers are converted by NumPy, in several steps.
    copies = 5 if image.mode in ("F", "I") or image.mode.startswith("I;") else 2
    scaled_columns = 4 * size * image.height
    needed = 4 * copies * image.width * image.height + scaled_columns + 8 * image.height
    if needed > MAX_BYTES:
        found = f"{image.width:,} x {image.height:,} pixels, which take {needed:,} bytes to decode and scale"
        raise UsageError(found=found, wanted=f"at most {MAX_BYTES:,}", remedy="scale it down")


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert to RGB. Pillow's own conversion clips wide pixels at 255, which turns most of such an image white."""
    if image.mode == "RGB":
        return image
    # Pillow gives 16-bit greys of PNG (by version) and PGM as int32.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return _grey(np.asarray(image) >> 8)
    if image.mode == "I":
        raise UsageError(found="32-bit integer pixels", wanted="8 or 16 bits", remedy="convert it to PNG")
    if image.mode == "F":
        return _grey(_float_levels(np.asarray(image)))
    return image.convert("RGB")


def _float_levels(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Levels 0..255 of float pixels, which are in 0..1 by convention, or in 0..255 as in Pillow."""
    low, high = float(pixels.min()), float(pixels.max())
    if not 0 <= low <= high <= 255:
        raise UsageError(found=f"float pixels from {low:g} to {high:g}", wanted="0..1 or 0..255")
    return np.rint(pixels * np.float32(255) if high <= 1 else pixels)


def _grey(levels: NDArray[np.generic]) -> Image.Image:
    return Image.fromarray(levels.astype(np.uint8)).convert("RGB")
