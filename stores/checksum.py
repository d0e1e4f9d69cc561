"""CRC-32C (Castagnoli) of samples and files: the checksum that zarr uses for its shard index."""

from __future__ import annotations

import crc32c as _library
import numpy as np
import numpy.typing as npt


def crc32c(data: npt.NDArray[np.generic], start: int = 0) -> int:
    """Return the checksum of an array's bytes, continued from `start`, the checksum of the preceding bytes.

    Does not copy the array and releases the GIL. Runs at 10 to 30 GB/s per core.
    """
    view = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
    return int(_library.crc32c(view.data, start))


def crc32c_bytes(data: bytes | memoryview) -> int:
    """Return the checksum of bytes. Does not copy them and releases the GIL for more than 32 KB."""
    return int(_library.crc32c(data))


def crc32c_rows(block: npt.NDArray[np.generic]) -> npt.NDArray[np.uint32]:
    """Return the checksum of every row: `[B, …]` to `[B]` uint32."""
    rows = np.ascontiguousarray(block).reshape(len(block), -1).view(np.uint8)
    return np.array([_library.crc32c(row.data) for row in rows], dtype=np.uint32)
