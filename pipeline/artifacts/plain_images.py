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

DEEP_MODES = ("I", "F")  # and those that start with `I;16`
TIFF_BITS = 258  # the tag of the bits per channel
PNG_BITS = 24  # the position of the bits per channel in a file


def decode_plain(data: bytes, side: int, resize: bool) -> npt.NDArray[np.uint8]:
    """Decode an image that is evaluated, uint8 `[side, side, 3]`.

    Args:
        data: the bytes of the file.
        side: side of the image in pixels.
        resize: scale and crop images of other sizes, as `encode` does, instead of refusing them.

    Raises:
        BadImageError: the image cannot be decoded, has another size, more than 8 bits per channel, or is not opaque.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            size, bits = image.size, _bits(image, data)
            opaque = _is_opaque(image)
    except MemoryError:
        raise
    except Exception:  # Pillow raises various exceptions for damaged files; decoding states the reason
        return decode_crop(data, side)
    if size != (side, side) and not resize:
        raise BadImageError(
            f"it has {size[0]} x {size[1]} pixels, the first image {side} x {side}: pass --resize {side} to scale and "
            "crop all images to one size"
        )
    if bits > 8:
        raise BadImageError(f"it has {bits} bits per channel, and detectors take 8: convert it")
    if not opaque:
        raise BadImageError("it has transparent pixels, whose color is undefined: composite it on a background")
    return decode_crop(data, side)


def square_side(data: bytes) -> int:
    """Return the side of an image in pixels; BadImageError if it is not square or cannot be decoded."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
    except MemoryError:
        raise
    except Exception:  # as above
        return len(decode_crop(data, 1))
    if width != height:
        raise BadImageError(
            f"it has {width} x {height} pixels, expected a square: pass --resize {min(width, height)} to scale and "
            "crop all images to one size"
        )
    return width


def _bits(image: Any, data: bytes) -> int:
    """Return the bits per channel in the file of an opened image, which Pillow may reduce to 8."""
    if image.mode.startswith("I;16"):
        return 16
    if image.mode in DEEP_MODES:
        return 16 if image.format in {"PNG", "PPM"} else 32
    if image.format == "PNG":
        return data[PNG_BITS]
    if image.format == "TIFF":
        return int(max(image.tag_v2.get(TIFF_BITS, (8,))))
    if image.format == "PPM" and image.tile:
        args = image.tile[0].args
        return 16 if isinstance(args, tuple) and isinstance(args[-1], int) and args[-1] > 255 else 8
    return 8


def _is_opaque(image: Image.Image) -> bool:
    if not image.has_transparency_data:
        return True
    lowest, _ = image.convert("RGBA").getchannel("A").getextrema()
    return lowest == 255
