"""What the codestream of a JPEG 2000 declares, read without decoding it (ISO/IEC 15444-1, annex A)."""

import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple

from ..errors import BadImageError

MAX_PIECES = 1_000_000
"""Code blocks of a tile, at least one per precinct: OpenJPEG needs up to 500 bytes for each before it decodes any."""

MAX_PACKETS = 1 << 26
"""Precincts of a tile times quality layers, two bytes each in OpenJPEG."""

JPEG2000_STARTS = (b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  ")
"""First bytes of a file: those of the codestream, or of a container of it."""

_MAX_CODESTREAMS, _MAX_SEGMENTS = 100, 100_000
_CODESTREAM = JPEG2000_STARTS[0]  # the first two markers; byte 42 from their start is the depth
_SIZE = struct.Struct(">8IH")  # width, height and offset of the image, those of a tile, number of channels
_TILE_PART = struct.Struct(">HI")  # number of the tile, bytes of this part
_CODING, _CHANNEL_CODING, _TILE, _DATA = 0xFF52, 0xFF53, 0xFF90, 0xFF93


class _Coding(NamedTuple):
    """How each tile is divided; sizes are exponents of 2."""

    layers: int
    levels: int  # of the wavelet transform: resolutions below the full one
    block: tuple[int, int]
    precincts: bytes  # width and height of each resolution, 4 bits each; empty: one precinct


def jpeg2000_bits(data: bytes) -> int | None:
    """Return the bits per value in the first channel of a JPEG 2000 file; None if its header is incomplete."""
    start = data.find(_CODESTREAM)
    return (data[start + 42] & 127) + 1 if 0 <= start < len(data) - 42 else None


def require_few_pieces(data: bytes) -> None:
    """Raise BadImageError if a JPEG 2000 divides its pixels into more pieces than its decoder has memory for.

    What else is wrong with a file is left to the decoder.
    """
    start = data.find(_CODESTREAM)
    for _ in range(_MAX_CODESTREAMS):
        if start < 0:
            return
        with suppress(struct.error, IndexError):  # it ends early
            _check_codestream(data, start)
        start = data.find(_CODESTREAM, start + 1)
    raise _too_many("codestreams", _MAX_CODESTREAMS)


def _check_codestream(data: bytes, start: int) -> None:
    width, height, left, top, tile_width, tile_height, _, _, channels = _SIZE.unpack_from(data, start + 8)
    tile = (min(width - left, tile_width), min(height - top, tile_height))
    for coding in _codings(data, start + 2, 1 if channels < 257 else 2):
        precincts, blocks = _count_pieces(tile, coding)
        if channels * blocks > MAX_PIECES:
            raise _too_many("code blocks and precincts", MAX_PIECES)
        if channels * precincts * coding.layers > MAX_PACKETS:
            raise _too_many("quality layers of precincts", MAX_PACKETS)


def _codings(data: bytes, position: int, channel_bytes: int) -> Iterator[_Coding]:
    """Yield all coding styles that a codestream declares, in its main header and in those of its tiles."""
    tile_end = 0
    for _ in range(_MAX_SEGMENTS):
        if len(data) < position + 4:
            return
        marker, length = struct.unpack_from(">HH", data, position)
        content, end = position + 4, position + 2 + length
        if marker == _CODING:
            layers = int.from_bytes(data[content + 2 : content + 4])
            yield _coding(data[content:end], content_start=5, layers=layers)
        elif marker == _CHANNEL_CODING:
            yield _coding(data[content + channel_bytes : end], content_start=1, layers=1)
        elif marker == _TILE:
            _, size = _TILE_PART.unpack_from(data, content)
            tile_end = position + size if size else len(data)
        position = max(tile_end, position + 2) if marker == _DATA else end
    raise _too_many("segments", _MAX_SEGMENTS)


def _coding(fields: bytes, content_start: int, layers: int) -> _Coding:
    levels, width, height = fields[content_start], fields[content_start + 1], fields[content_start + 2]
    has_precincts = fields[0] & 1
    precincts = fields[content_start + 5 : content_start + 6 + levels] if has_precincts else b""
    return _Coding(layers, levels, (width + 2, height + 2), precincts)


def _count_pieces(tile: tuple[int, int], coding: _Coding) -> tuple[int, int]:
    """Return the precincts and the code blocks of one channel of a tile, over all its resolutions."""
    precincts = blocks = 0
    for resolution in range(min(coding.levels, 32) + 1):
        sizes = [-(-max(side, 0) // 2 ** (coding.levels - resolution)) for side in tile]
        declared = coding.precincts[resolution] if coding.precincts else 0xFF
        exponents = (declared & 15, declared >> 4)
        precincts += _pieces(sizes, exponents)
        in_band = [max(exponent - (resolution > 0), 0) for exponent in exponents]
        blocks += _pieces(sizes, [min(pair) for pair in zip(coding.block, in_band, strict=True)])
    return precincts, blocks


def _pieces(sizes: list[int], exponents: Sequence[int]) -> int:
    width, height = (-(-size // (1 << exponent)) for size, exponent in zip(sizes, exponents, strict=True))
    return width * height


def _too_many(what: str, limit: int) -> BadImageError:
    return BadImageError(f"its JPEG2000 data has more than {limit:,} {what}: taken for a decompression bomb")
