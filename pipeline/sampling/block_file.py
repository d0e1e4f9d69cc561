"""Files of finished blocks of images: an .npy file, followed by its checksum.

numpy and earlier versions read the array and ignore what follows. Blocks of earlier versions have no checksum, and were
not synced to the disk: after a power failure, parts of them may be zeros, which are black images.
"""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...errors import ConfigError
from ...stores.checksum import crc32c_bytes
from ...stores.files import atomic_write_bytes

MARK = b"c32c"  # in front of the CRC-32C of all bytes before it
TRAILER = struct.Struct("<4sI")


def block_path(folder: Path, block: range) -> Path:
    """Return the file of a block."""
    return folder / f"{block.start:08d}.npy"


def write_block(folder: Path, block: range, images: npt.NDArray[np.uint8]) -> None:
    """Write the images of a block, uint8 `[B, H, W, 3]`, so that they survive a power failure."""
    buffer = io.BytesIO()
    np.save(buffer, images)
    data = buffer.getvalue()
    atomic_write_bytes(block_path(folder, block), data + TRAILER.pack(MARK, crc32c_bytes(data)))


def read_block(folder: Path, block: range) -> tuple[npt.NDArray[np.uint8], bool]:
    """Return the images of a block, uint8 `[B, H, W, 3]`, and whether a checksum confirms them.

    Raises:
        ConfigError: the file is damaged.
    """
    path = block_path(folder, block)
    data = path.read_bytes()
    body, tail = data[: -TRAILER.size], data[-TRAILER.size :]
    checked = tail.startswith(MARK)
    if checked and tail != TRAILER.pack(MARK, crc32c_bytes(body)):
        raise ConfigError(f"{path}: checksum mismatch")
    images = _parse(path, body if checked else data, len(block))
    if not checked and not images.any(axis=(1, 2, 3)).all():
        raise ConfigError(f"{path} has no checksum and holds a black image")
    return images, checked


def _parse(path: Path, data: bytes, count: int) -> npt.NDArray[np.uint8]:
    stream = io.BytesIO(data)
    try:
        images: npt.NDArray[np.uint8] = np.load(stream)
    except (ValueError, EOFError) as error:
        raise ConfigError(f"{path} is not an array ({error})") from error
    found = f"{images.shape} {images.dtype}"
    if images.ndim != 4 or len(images) != count or images.shape[3] != 3 or images.dtype != np.uint8 or stream.read(1):
        raise ConfigError(f"{path} holds {found}, expected {count} images: uint8 [{count}, side, side, 3]")
    return images
