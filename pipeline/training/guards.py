"""A clear error when the disk is full."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from ...errors import CheckpointError


@contextmanager
def full_disk_error(folder: str) -> Iterator[None]:
    """Turn the error of a full disk into a CheckpointError."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise CheckpointError(
            f"{folder} is full ({error}). Everything written before is intact: free some space and re-run the command"
        ) from error
