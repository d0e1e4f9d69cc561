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
