"""A clear error when the disk is full."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ...errors import CheckpointError
from ..runtime.full_disk import is_disk_full


@contextmanager
def full_disk_error(folder: str) -> Iterator[None]:
    """Turn the error of a full disk into a CheckpointError."""
    try:
        yield
    except OSError as error:
        if not is_disk_full(error):
            raise
        raise CheckpointError(
            f"{folder} is full ({error}). Everything written before is intact: free some space and re-run the command"
        ) from error
