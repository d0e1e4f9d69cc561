"""CRC-32C (Castagnoli), the checksum of zarr's own index, over samples and files."""

from __future__ import annotations

import google_crc32c
import numpy as np
import numpy.typing as npt


def crc32c(data: npt.NDArray[np.generic], start: int = 0) -> int:
    """Checksum of an array's bytes, continuing from the checksum `start` of what came before.

    Reads the array where it lies, at about 10 GB/s a core; the GIL is held meanwhile.
    """
    view = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
    view.flags.writeable = False  # the C function takes read-only buffers alone
    return int(google_crc32c.extend(start, view))


def crc32c_bytes(data: bytes) -> int:
    """Checksum of bytes."""
    return int(google_crc32c.value(data))


def crc32c_rows(block: npt.NDArray[np.generic]) -> npt.NDArray[np.uint32]:
    """Checksum of every row: `[B, …]` to `[B]` uint32."""
    rows = np.ascontiguousarray(block).reshape(len(block), -1).view(np.uint8)
    rows.flags.writeable = False
    return np.array([google_crc32c.value(row) for row in rows], dtype=np.uint32)
