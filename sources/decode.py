"""Decoding of image files into center crops, with a short reason for each image that cannot be decoded."""

import io
import re
import warnings

import numpy as np
import PIL.Image
import PIL.ImageFile

from ..errors import BadImageError, ConfigError
from .crop import MAX_PIXELS, center_crop

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "PPM", "GIF")
"""The formats that Pillow may decode: none that start another program (EPS) or contain drawing commands (WMF)."""

MIN_SIDE = 3  # pixels; images with a side of 1 or 2 are tracking pixels or divider lines
MAX_SIDE = 65_535

_IGNORE_PILLOW = ("ignore", None, Warning, re.compile(r"PIL\."), 0)


def decode_crop(data: bytes, size: int) -> np.ndarray:
    """Decode an image file and crop its center.

    Thread-safe. The full image is always decoded, because JPEG's scaled decoding would change pixels. From the first
    call on, warnings of Pillow's modules (unusual EXIF data, large images) are ignored in this process.

    Args:
        data: the bytes of the file.
        size: side of the crop in pixels.

    Returns:
        uint8 `[size, size, 3]`.

    Raises:
        BadImageError: the image cannot be decoded. The message is the same for the same bytes.
    """
    if not data:
        raise BadImageError("the file is empty (0 bytes)")
    if PIL.ImageFile.LOAD_TRUNCATED_IMAGES:
        raise ConfigError(
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is True, which silently fills truncated images with gray: "
            "set it to False"
        )
    _ignore_pillow_warnings()
    with _open(data) as image:
        _check_size(image.width, image.height)
        rgb = _load_rgb(image)
    return center_crop(rgb, size)


def _open(data: bytes) -> PIL.Image.Image:
    try:
        return PIL.Image.open(io.BytesIO(data), formats=FORMATS)
    except PIL.UnidentifiedImageError:
        raise BadImageError(_bad_header(data, f"{len(data):,} bytes")) from None
    except PIL.Image.DecompressionBombError:
        raise BadImageError(f"more than {MAX_PIXELS:,} pixels: taken for a decompression bomb") from None
    except MemoryError:
        raise
    except Exception as error:  # Pillow's readers raise various exceptions for damaged headers
        raise BadImageError(_bad_header(data, _reason(error))) from None


def _bad_header(data: bytes, reason: str) -> str:
    for name in FORMATS:
        accept = PIL.Image.OPEN[name][1]
        if accept and accept(data[:16]):
            return f"its {name} header is truncated or damaged ({reason})"
    return f"not an image (starts with {data[:8]!r}): expected one of {', '.join(FORMATS)}"


def _check_size(width: int, height: int) -> None:
    if min(width, height) < MIN_SIDE:
        raise BadImageError(f"{width} x {height} pixels: a side is shorter than {MIN_SIDE} pixels")
    if max(width, height) > MAX_SIDE:
        raise BadImageError(f"{width} x {height} pixels: a side is longer than {MAX_SIDE:,} pixels")
    if width * height > MAX_PIXELS:
        raise BadImageError(f"{width} x {height} pixels: more than {MAX_PIXELS:,}, a decompression bomb")


def _load_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    try:
        image.load()
        return image if image.mode == "RGB" else image.convert("RGB")
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise various exceptions for damaged data
        if str(error).startswith("out of memory"):  # an OSError if the codec ran out of memory
            raise MemoryError(str(error)) from error
        raise BadImageError(f"its {image.format} data is truncated or damaged ({_reason(error)})") from None


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__


def _ignore_pillow_warnings() -> None:
    """Install the filter once: `warnings.catch_warnings` around each call would race between threads."""
    if _IGNORE_PILLOW not in warnings.filters:
        warnings.filterwarnings("ignore", module=_IGNORE_PILLOW[3].pattern)
