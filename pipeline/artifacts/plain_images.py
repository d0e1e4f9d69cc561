"""Which images of a folder can be evaluated as they are: of one size, with 8 bits per channel, and opaque.

Metrics depend on every pixel, so nothing is scaled, cut off or composited without a request.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ...errors import BadImageError
from ...sources import decode_crop
from ...sources.decode import image_size
from ...sources.jpeg2000 import jpeg2000_bits
from ...sources.png_chunks import without_metadata

TIFF_BITS = 258  # the tag of the bits per channel
PNG = b"\x89PNG"


def decode_plain(data: bytes, side: int, resize: bool) -> npt.NDArray[np.uint8]:
    """Decode an image that is evaluated, uint8 `[side, side, 3]`.

    Args:
        data: the bytes of the file.
        side: side of the image in pixels.
        resize: scale and crop images of other sizes, as `encode` does, instead of refusing them.

    Raises:
        BadImageError: the image cannot be decoded, has another size, more than 8 bits per channel, or is not opaque.
    """
    width, height = image_size(data)
    if (width, height) != (side, side) and not resize:
        raise BadImageError(
            f"it has {width} x {height} pixels, the first image {side} x {side}: pass --resize {side} to scale and "
            "crop all images to one size"
        )
    crop = decode_crop(data, side)
    with Image.open(io.BytesIO(without_metadata(data) if data.startswith(PNG) else data)) as image:
        bits = _bits(image, data)
        if bits > 8:
            raise BadImageError(f"it has {bits} bits per channel, and detectors take 8: convert it")
        if not _is_opaque(image):
            raise BadImageError("it has transparent pixels, whose color is undefined: composite it on a background")
    return crop


def square_side(data: bytes) -> int:
    """Return the side of an image in pixels; BadImageError if it is not square or cannot be decoded."""
    width, height = image_size(data)
    if width != height:
        raise BadImageError(
            f"it has {width} x {height} pixels, expected a square: pass --resize {min(width, height)} to scale and "
            "crop all images to one size"
        )
    return width


def _bits(image: Any, data: bytes) -> int:
    """Return the bits per channel in the file of an opened image, which Pillow may reduce to 8."""
    if image.format in BITS_IN_FILE:
        return BITS_IN_FILE[image.format](data)
    if image.format == "TIFF":
        return int(max(image.tag_v2.get(TIFF_BITS, (8,))))
    if image.format == "PPM":
        largest = image.tile[0].args[-1]  # the level of white, except for black and white
        return 16 if image.mode == "I" or (isinstance(largest, int) and largest > 255) else 8
    return 8


def _png_bits(data: bytes) -> int:
    return data[24]


def _jpeg2000_bits(data: bytes) -> int:
    bits = jpeg2000_bits(data)
    assert bits is not None  # the file was decoded
    return bits


def _avif_bits(data: bytes) -> int:
    """Return the bits from the two flags in the codec's configuration record."""
    flags = data[data.find(b"av1C") + 6]
    return (12 if flags & 0x20 else 10) if flags & 0x40 else 8


BITS_IN_FILE = {"PNG": _png_bits, "JPEG2000": _jpeg2000_bits, "AVIF": _avif_bits}


def _is_opaque(image: Image.Image) -> bool:
    if not image.has_transparency_data:
        return True
    lowest, _ = image.convert("RGBA").getchannel("A").getextrema()
    return lowest == 255
