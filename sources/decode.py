"""From the bytes of an image file to its center crop, or a short reason why there is none."""

import io
import re
import warnings

import numpy as np
import PIL.Image
import PIL.ImageFile

from ..errors import BadImageError, ConfigError
from .crop import MAX_PIXELS, center_crop

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "PPM", "GIF")
"""What Pillow may try: no format that starts another program (EPS) or is drawn rather than stored (WMF)."""

MIN_SIDE = 3  # pixels; a side of one or two is a tracking pixel or a divider line
MAX_SIDE = 65_535

_IGNORE_PILLOW = ("ignore", None, Warning, re.compile(r"PIL\."), 0)


def decode_crop(data: bytes, size: int) -> np.ndarray:
    """Decode an image file and crop its middle: uint8 [size, size, 3].

    Safe to call from many threads at once. The full image is always decoded (JPEG's scaled decoding would change
    pixels). Raises BadImageError with a reason that is the same every time for the same bytes. Warnings that
    Pillow's modules give (odd EXIF, large images) are ignored in this process from the first call on.
    """
    if not data:
        raise BadImageError("the file is empty (0 bytes)")
    if PIL.ImageFile.LOAD_TRUNCATED_IMAGES:
        raise ConfigError(
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is True, so that truncated images would be filled with gray "
            "unnoticed: set it to False"
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
    except Exception as error:  # Pillow's readers raise all sorts of exceptions on damaged headers
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
    except Exception as error:  # Pillow's decoders raise all sorts of exceptions on damaged data
        if str(error).startswith("out of memory"):  # an OSError, where the codec itself had none left
            raise MemoryError(str(error)) from error
        raise BadImageError(f"its {image.format} data is truncated or damaged ({_reason(error)})") from None


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__


def _ignore_pillow_warnings() -> None:
    """Put the filter in place once; `warnings.catch_warnings` around each call would race between threads."""
    if _IGNORE_PILLOW not in warnings.filters:
        warnings.filterwarnings("ignore", module=_IGNORE_PILLOW[3].pattern)
