"""Decoding of image files into center crops, with a short reason for each image that cannot be decoded."""

import re
import warnings
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import PIL.Image
import PIL.ImageFile

from ..errors import BadImageError, ConfigError
from .crop import MAX_PIXELS, center_crop
from .decoder_limits import Budget, LimitedReads, bomb, require_limits
from .formats import bad_header, readable_formats, reason_of, unsupported
from .jpeg2000 import jpeg2000_bits
from .pixels import first_of_tag, to_rgb
from .png_chunks import without_metadata

MIN_SIDE = 3  # pixels; images with a side of 1 or 2 are tracking pixels or divider lines
MAX_SIDE = 65_535

_IGNORE_PILLOW = ("ignore", None, Warning, re.compile(r"PIL\."), 0)
_TILE_WIDTH, _TILE_HEIGHT = 322, 323  # tags of TIFF
_LARGE_METADATA = re.compile("MAX_TEXT|decompressed data too large", re.I)  # Pillow's messages

_decoding = Budget()
T = TypeVar("T")


class _LargeMetadataError(BadImageError):
    """A PNG with more text than Pillow accepts."""


def image_size(data: bytes) -> tuple[int, int]:
    """Return width and height of an image file, read from its header; raises BadImageError like `decode_crop`."""
    _ignore_pillow_warnings()
    try:
        image = _open(data)
    except _LargeMetadataError:
        image = _open(without_metadata(data))
    with image:
        _check_size(image, MAX_PIXELS)
        return image.size


def decode_crop(data: bytes, size: int, *, cut_levels: bool = False, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode an image file and crop its center.

    Thread-safe. The full image is always decoded, because JPEG's scaled decoding would change pixels. Images that
    several threads decode at the same time have at most `max_pixels` together: others wait. From the first call on,
    warnings of Pillow's modules (unusual EXIF data, large images) are ignored in this process.

    Args:
        data: the bytes of the file.
        size: side of the crop in pixels.
        cut_levels: the crop is compared with earlier ones in which gray levels above 255 were cut: images with such
            levels are refused.
        max_pixels: refuse larger images, before they are decoded. At most `MAX_PIXELS`.

    Returns:
        uint8 `[size, size, 3]`.

    Raises:
        BadImageError: the image cannot be decoded. The message is the same for the same bytes.
    """
    return _decode(data, lambda rgb: center_crop(rgb, size), size, cut_levels, max_pixels)


def decode_rgb(data: bytes) -> PIL.Image.Image:
    """Decode an image file to 8-bit RGB; raises BadImageError like `decode_crop`."""
    return _decode(data, lambda rgb: rgb.copy())


def _decode(
    data: bytes,
    convert: Callable[[PIL.Image.Image], T],
    crop: int = 0,
    cut_levels: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> T:
    if not data:
        raise BadImageError("the file is empty (0 bytes)")
    if PIL.ImageFile.LOAD_TRUNCATED_IMAGES:
        raise ConfigError(
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is True, which silently fills truncated images with gray: "
            "set it to False"
        )
    _ignore_pillow_warnings()
    try:
        return _decode_once(data, convert, crop, cut_levels, max_pixels)
    except _LargeMetadataError:
        return _decode_once(without_metadata(data), convert, crop, cut_levels, max_pixels)


def _decode_once(
    data: bytes, convert: Callable[[PIL.Image.Image], T], crop: int, cut_levels: bool, max_pixels: int
) -> T:
    with _open(data) as image:
        _check_size(image, max_pixels)
        _check_depth(image, data)
        if cut_levels and image.mode.startswith("I"):
            raise BadImageError(
                "its gray levels have more than 8 bits, which the version that created this store cut at 255: create a "
                "new store to include it"
            )
        with _decoding.hold(_pixels_in_memory(image, crop), max_pixels):
            return convert(_load_rgb(image))


def _open(data: bytes) -> PIL.Image.Image:
    require_limits(data)
    try:
        return PIL.Image.open(LimitedReads(data), formats=readable_formats())
    except PIL.UnidentifiedImageError:
        raise BadImageError(bad_header(data)) from None
    except PIL.Image.DecompressionBombError:
        raise bomb(f"more than {MAX_PIXELS:,} pixels") from None
    except (MemoryError, BadImageError):
        raise
    except Exception as error:  # Pillow's readers raise various exceptions for damaged headers
        _raise_if_large_metadata(error)
        raise BadImageError(bad_header(data, error)) from None


def _check_size(image: PIL.Image.Image, max_pixels: int) -> None:
    width, height = image.size
    if min(width, height) < MIN_SIDE:
        raise BadImageError(f"{width} x {height} pixels: a side is shorter than {MIN_SIDE} pixels")
    if max(width, height) > MAX_SIDE:
        raise BadImageError(f"{width} x {height} pixels: a side is longer than {MAX_SIDE:,} pixels")
    if width * height > max_pixels:
        raise BadImageError(f"{width} x {height} pixels: more than {max_pixels:,} (--max-image-pixels)")
    if (tile := _tile_pixels(image)) > max_pixels:
        raise bomb(f"its tiles have {tile:,} pixels, more than {max_pixels:,} (--max-image-pixels)")


def _tile_pixels(image: PIL.Image.Image) -> int:
    """Return the pixels of a tile of a TIFF: all of it is decoded, also what is outside of the image."""
    return first_of_tag(image, _TILE_WIDTH, 0) * first_of_tag(image, _TILE_HEIGHT, 0)


def _pixels_in_memory(image: PIL.Image.Image, crop: int) -> int:
    """Return the most pixels that decoding an image, and scaling its shorter side to `crop`, needs at a time."""
    scaled = crop * crop * max(image.size) // min(image.size)
    return max(image.width * image.height, _tile_pixels(image), scaled)


def _check_depth(image: PIL.Image.Image, data: bytes) -> None:
    """Refuse JPEG 2000 with fewer than 8 bits, which Pillow shifts instead of scaling: white would become gray."""
    bits = jpeg2000_bits(data) if image.format == "JPEG2000" else None
    if bits is not None and bits < 8:
        raise BadImageError(f"it is a JPEG2000 with {bits} bits; expected at least 8")


def _load_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    try:
        image.load()
        return to_rgb(image)
    except (MemoryError, BadImageError):
        raise
    except Exception as error:  # Pillow's decoders raise various exceptions for damaged data
        if str(error).startswith("out of memory"):  # an OSError if the codec ran out of memory
            raise MemoryError(str(error)) from error
        _raise_if_large_metadata(error)
        damaged = f"its {image.format} data is truncated or damaged ({reason_of(error)})"
        raise BadImageError(unsupported(image.format, error) or damaged) from None


def _raise_if_large_metadata(error: Exception) -> None:
    if _LARGE_METADATA.search(str(error)):
        raise _LargeMetadataError(reason_of(error)) from None


def _ignore_pillow_warnings() -> None:
    """Install the filter once: `warnings.catch_warnings` around each call would race between threads."""
    if _IGNORE_PILLOW not in warnings.filters:
        warnings.filterwarnings("ignore", module=_IGNORE_PILLOW[3].pattern)
