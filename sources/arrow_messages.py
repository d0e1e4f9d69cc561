"""The sizes of buffers that an Arrow IPC message states, which PyArrow does not pass on."""

import struct
from collections.abc import Iterator
from typing import Any

# Numbers of the fields of the tables in Arrow's Message.fbs
_MESSAGE_HEADER, _DICTIONARY_DATA, _BATCH_BUFFERS, _BATCH_COMPRESSION = 2, 1, 2, 3


def decompressed_bytes(message: Any) -> int:
    """Return the bytes of all buffers of a compressed record batch or dictionary; 0 if it is not compressed.

    Raises:
        ValueError: the message is damaged.
    """
    if message.type not in ("record batch", "dictionary"):
        return 0
    metadata = message.metadata.to_pybytes()
    try:
        batch = _follow(metadata, _field(metadata, _follow(metadata, 0), _MESSAGE_HEADER))
        if message.type == "dictionary":
            batch = _follow(metadata, _field(metadata, batch, _DICTIONARY_DATA))
        if not _field(metadata, batch, _BATCH_COMPRESSION):
            return 0
        return sum(_stated_bytes(message.body, *place) for place in _buffers(metadata, batch))
    except struct.error:
        raise ValueError("the sizes in a message cannot be read") from None


def _buffers(metadata: bytes, batch: int) -> Iterator[tuple[int, int]]:
    """Yield position and length of each buffer in the body of a message."""
    field = _field(metadata, batch, _BATCH_BUFFERS)
    vector = _follow(metadata, field) if field else 0
    count = struct.unpack_from("<I", metadata, vector)[0] if field else 0
    for number in range(count):
        yield struct.unpack_from("<qq", metadata, vector + 4 + 16 * number)


def _stated_bytes(body: Any, position: int, length: int) -> int:
    """Return the size that a compressed buffer states in its first 8 bytes; -1 there: it is not compressed."""
    if length < 8:
        return 0
    size: int = struct.unpack_from("<q", body, position)[0]
    return length if size < 0 else size


def _field(metadata: bytes, table: int, number: int) -> int:
    """Return the position of a field of a flatbuffer's table; 0 if it has its default value."""
    entries = table - struct.unpack_from("<i", metadata, table)[0]
    size = struct.unpack_from("<H", metadata, entries)[0]
    if 4 + 2 * number + 2 > size:
        return 0
    offset: int = struct.unpack_from("<H", metadata, entries + 4 + 2 * number)[0]
    return table + offset if offset else 0


def _follow(metadata: bytes, position: int) -> int:
    """Return the position that an offset of a flatbuffer leads to."""
    offset: int = struct.unpack_from("<I", metadata, position)[0]
    return position + offset
