"""Conversion of images in any of Pillow's modes to 8-bit RGB, by one stated rule per mode."""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import PIL.Image

from ..errors import BadImageError

Convert: TypeAlias = Callable[[PIL.Image.Image], PIL.Image.Image]

_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF
_WHITE_IS_ZERO, _SIGNED = 0, 2  # their values
_ROWS = 256  # converted at a time, to need little memory


class Rule(NamedTuple):
    """How the pixels of one mode become 8-bit RGB; `convert` raises BadImageError for pixels that it refuses."""

    pixels: str
    rule: str
    convert: Convert


def to_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    """Convert an image to 8-bit RGB by the rule of its mode. The full range is kept; nothing is cut at 255.

    Raises:
        BadImageError: there is no rule for the image's mode, or the rule refuses its pixels.
    """
    if image.mode not in RULES:
        raise BadImageError(f"its pixels have mode {image.mode!r}; expected one of {', '.join(RULES)}")
    return RULES[image.mode].convert(image)


def _unchanged(image: PIL.Image.Image) -> PIL.Image.Image:
    return image


def _by_pillow(image: PIL.Image.Image) -> PIL.Image.Image:
    return image.convert("RGB")


def _without_premultiplied_alpha(image: PIL.Image.Image) -> PIL.Image.Image:
    return image.convert(image.mode.upper()).convert("RGB")


def _refuse_floats(image: PIL.Image.Image) -> PIL.Image.Image:
    raise BadImageError("its pixels are floating-point numbers, whose white is not defined: save it with 8 or 16 bits")


def _eight_bit_gray(image: PIL.Image.Image) -> PIL.Image.Image:
    return _scale(image) if first_of_tag(image, _SAMPLE_FORMAT, 1) == _SIGNED else image.convert("RGB")


def _scale(image: PIL.Image.Image) -> PIL.Image.Image:
    """Scale integer gray levels: 0 becomes 0, the largest possible level 255, rounded to the nearest."""
    bits, signed = first_of_tag(image, _BITS, 16), first_of_tag(image, _SAMPLE_FORMAT, 1) == _SIGNED
    white = 2 ** (bits - signed) - 1
    levels = _stored_levels(image, bits, signed)
    lowest, highest = int(levels.min()), int(levels.max())
    if lowest < 0 or highest > white:
        raise BadImageError(
            f"its {bits}-bit gray levels are {lowest:,} to {highest:,}; expected 0 (black) to {white:,} (white)"
        )
    gray = np.empty(levels.shape, np.uint8)
    for top in range(0, len(levels), _ROWS):
        gray[top : top + _ROWS] = levels[top : top + _ROWS] * (255 / white) + 0.5
    if bits == 32 and highest and not gray.any():
        raise BadImageError(
            f"its 32-bit gray levels end at {highest:,} of {white:,}, black in 8 bits: save it with 8 or 16 bits"
        )
    if first_of_tag(image, _PHOTOMETRIC, 1) == _WHITE_IS_ZERO:  # Pillow inverts these levels up to 8 bits only
        gray = 255 - gray
    return PIL.Image.fromarray(gray).convert("RGB")


def _stored_levels(image: PIL.Image.Image, bits: int, signed: bool) -> npt.NDArray[np.integer]:
    """Return gray levels with the sign that the file declares; Pillow ignores it for 8 and for 32 bits."""
    levels = np.asarray(image)
    if bits == 8 and signed:
        return levels.view(np.int8)
    if bits == 32 and not signed:
        return levels.view(np.uint32)
    return levels


def first_of_tag(image: PIL.Image.Image, tag: int, default: int) -> int:
    """Return the first value of a tag of a TIFF file; `default` if the file has no such tag, or is no TIFF."""
    found = getattr(image, "tag_v2", {}).get(tag, default)
    return int(found[0] if isinstance(found, tuple) else found)


_SCALED_16 = "divided by 257 and rounded, so 65,535 becomes 255; 12 bits in a TIFF: 4,095 becomes 255"

RULES: dict[str, Rule] = {
    "RGB": Rule("8-bit color; 16 bits: the high byte", "unchanged", _unchanged),
    "RGBA": Rule("color with alpha", "alpha is ignored", _by_pillow),
    "RGBX": Rule("color with padding", "padding is ignored", _by_pillow),
    "RGBa": Rule("color multiplied by alpha", "divided by alpha, which is then ignored", _without_premultiplied_alpha),
    "P": Rule("palette", "color of the palette; transparency is ignored", _by_pillow),
    "PA": Rule("palette with alpha", "color of the palette; alpha is ignored", _by_pillow),
    "1": Rule("black and white", "0 and 255", _by_pillow),
    "L": Rule("8-bit gray, or fewer bits scaled to 8", "repeated in three channels", _eight_bit_gray),
    "LA": Rule("gray with alpha; 16 bits: the high byte", "repeated in three channels; alpha is ignored", _by_pillow),
    "La": Rule("gray multiplied by alpha", "divided by alpha, which is then ignored", _without_premultiplied_alpha),
    "I;16": Rule("16-bit gray", _SCALED_16, _scale),
    "I;16B": Rule("16-bit gray, big-endian", _SCALED_16, _scale),
    "I;16L": Rule("16-bit gray, little-endian", _SCALED_16, _scale),
    "I;16N": Rule("16-bit gray, native byte order", _SCALED_16, _scale),
    "I": Rule(
        "16-bit or 32-bit gray, signed or not",
        "scaled so that 0 becomes 0 and the largest level of the type 255; negative levels are refused, and 32-bit "
        "levels that would all be black",
        _scale,
    ),
    "F": Rule("floating-point gray", "refused: its white is not defined", _refuse_floats),
    "CMYK": Rule(
        "four inks",
        "Pillow's formula without a color profile; all JPEGs are read as inverted, as Adobe writes them",
        _by_pillow,
    ),
    "YCbCr": Rule("luma and chroma", "the formula of JPEG, full range", _by_pillow),
    "LAB": Rule("CIELAB", "converted to sRGB by LittleCMS; black and white are within one level", _by_pillow),
}
"""The rule of every mode in which Pillow opens a file. Where two frames or pages exist, the first one is used."""
