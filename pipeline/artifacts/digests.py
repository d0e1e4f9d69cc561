"""Digests of the content of files, by which results are kept: a file that was copied or touched is the same file."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ...models.checked_zip import zip_digest
from ...stores.checksum import crc32c

_BLOCK = 64 << 20


def file_digest(path: Path) -> str:
    """Return a digest of a file; raises OSError.

    It is made of the checksums in the directory of a zip file, as checkpoints and .npz files are, which takes
    milliseconds. Other files are read completely.
    """
    found = zip_digest(path)
    if found is not None:
        return f"zip:{found}"
    crc = size = 0
    with path.open("rb", buffering=0) as file:
        while block := file.read(_BLOCK):
            crc, size = crc32c(np.frombuffer(block, np.uint8), crc), size + len(block)
    return f"crc32c:{crc:08x}-{size}"
