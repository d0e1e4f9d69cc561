"""Limits on what an image file may ask of its decoder, checked before any pixel is decoded.

A decoder written in C cannot be interrupted. With these limits, its time and memory grow with the number of pixels,
which is limited as well, however the file was made: a file of a few kilobytes may otherwise take hours or all memory.
"""

import io
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import BadImageError
from .jpeg2000 import JPEG2000_STARTS, require_few_pieces

MAX_SCANS = 100
"""Scans of a progressive JPEG, each of which visits all pixels; libtiff has the same limit. Encoders write about 10."""

MAX_EXIF_PARTS = 100
"""Segments of a JPEG over which Exif data is spread: Pillow copies all earlier ones for each. Cameras write one."""

MAX_SLOW_BYTES = 1 << 24
"""Bytes of a file whose pixels Pillow decodes in Python: numbers as text (PPM), or runs (BMP)."""

MAX_COMMENTS = 1_000
"""Comments in a PPM with numbers as text: Pillow copies the rest of the file for each."""

_READS, _BYTES_PER_READ = 100_000, 1_000
_SMALL_PIECES = "its data is in too many small pieces"
_SCAN, _EXIF = re.compile(rb"\xff\xda"), re.compile(rb"Exif\0\0")  # five times as fast as bytes.count
_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")  # of a JPEG; the others are data
_START_OF_SCAN, _END = 0xDA, 0xD9
_RLE_BMP = (1, 2)  # values of the field of the compression


class LimitedReads(io.BytesIO):
    """A file in memory that refuses to be read in too many pieces.

    Pillow reads every chunk, block, comment and byte of padding on its own, in Python, so their number is limited: to
    100,000, and one more per 1,000 bytes of the file.
    """

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._left = _READS + len(data) // _BYTES_PER_READ

    def read(self, size: int | None = -1, /) -> bytes:
        """Read bytes; BadImageError after too many calls."""
        self._left -= 1
        if self._left < 0:
            raise bomb(_SMALL_PIECES)
        return super().read(size)


class Budget:
    """Pixels or bytes that the threads of a process may hold at the same time."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._held = 0

    @contextmanager
    def hold(self, amount: int, limit: int) -> Iterator[None]:
        """Wait until an amount fits into `limit`; one that does not fit at all is held alone."""
        with self._changed:
            self._changed.wait_for(lambda: not self._held or self._held + amount <= limit)
            self._held += amount
        try:
            yield
        finally:
            with self._changed:
                self._held -= amount
                self._changed.notify_all()


def bomb(what: str) -> BadImageError:
    """Return the error for a file that was made to exhaust its decoder."""
    return BadImageError(f"{what}: taken for a decompression bomb")


def require_limits(data: bytes) -> None:
    """Raise BadImageError if an image file would take more time or memory than its pixels explain."""
    if data[:3] == b"\xff\xd8\xff":
        _check_jpeg(data)
    elif data[:2] in (b"P1", b"P2", b"P3"):
        _require_small(data, "pixels as text")
        if data.count(b"#") > MAX_COMMENTS:
            raise bomb(f"it has more than {MAX_COMMENTS:,} comments")
    elif data[:2] == b"BM" and int.from_bytes(data[30:34], "little") in _RLE_BMP:
        _require_small(data, "run-length encoded pixels")
    elif data.startswith(JPEG2000_STARTS):
        require_few_pieces(data)


def _require_small(data: bytes, what: str) -> None:
    if len(data) > MAX_SLOW_BYTES:
        raise bomb(f"it has {len(data):,} bytes of {what}, more than {MAX_SLOW_BYTES:,}")


def _check_jpeg(data: bytes) -> None:
    if len(_EXIF.findall(data)) <= MAX_EXIF_PARTS and len(_SCAN.findall(data)) <= MAX_SCANS:
        return  # of nearly every file; the counts also find what only looks like a segment
    scans = exif_parts = 0
    for count, (marker, content) in enumerate(_segments(data)):
        scans += marker == _START_OF_SCAN
        exif_parts += _EXIF.match(data, content) is not None
        if scans > MAX_SCANS:
            raise bomb(f"it has more than {MAX_SCANS} scans")
        if exif_parts > MAX_EXIF_PARTS:
            raise bomb(f"its Exif data is in more than {MAX_EXIF_PARTS} segments")
        if count > _READS:
            raise bomb(_SMALL_PIECES)


def _segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield the marker of each segment of a JPEG, and the position of its content, up to the end of the image."""
    position = 2
    while (found := _MARKER.search(data, position)) and found[1][0] != _END:
        yield found[1][0], found.end() + 2
        position = found.end() + int.from_bytes(data[found.end() : found.end() + 2])
