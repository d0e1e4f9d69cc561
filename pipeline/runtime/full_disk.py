"""Full disks: their errors, and the space that is left."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path


def is_disk_full(error: BaseException) -> bool:
    """Return whether an error is that of a full disk, or of a used-up quota."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def free_bytes(folder: Path) -> int:
    """Return the free space of a folder's file system; a quota may allow less."""
    return shutil.disk_usage(folder).free


def size_text(count: int) -> str:
    """Return a number of bytes for people: `393 KB`, `1.2 GB`."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count / 1e3:,.0f} KB"
