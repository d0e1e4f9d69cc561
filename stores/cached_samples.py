"""The samples of an array that a cache folder holds: a sparse file per shard, and the list of what is in them."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..errors import StoreError
from .files import atomic_write_bytes, temporary_path

logger = logging.getLogger(__name__)

FLUSH_INTERVAL_S = 60.0
CACHED_SAMPLES_FILE = "present"  # next to an array's zarr.json in the cache: one byte per sample, 1 if it is cached


def create_sparse_file(path: Path, size: int, start: int, tail: memoryview) -> None:
    """Create the sparse file of a shard, or correct the size and the index of an existing one, which holds samples."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path)
    with temporary.open("wb") as file:
        file.truncate(size)
        os.pwrite(file.fileno(), tail, start)
    try:
        os.link(temporary, path)  # unlike a rename, never replaces a file that already holds samples
    except FileExistsError:
        with path.open("r+b") as file:
            file.truncate(size)
            os.pwrite(file.fileno(), tail, start)
    finally:
        temporary.unlink()


def write_sample(path: Path, start: int, data: npt.NDArray[np.uint8]) -> None:
    """Write the bytes of a sample into a sparse file.

    Raises:
        StoreError: the disk is full, or the file was deleted.
    """
    try:
        fd = os.open(path, os.O_WRONLY)
        try:
            written = 0
            while written < len(data):
                written += os.pwrite(fd, data[written:].data, start + written)
        finally:
            os.close(fd)
    except OSError as error:
        raise StoreError(
            f"{path}, a file of the cache, cannot be written ({error.strerror}): free disk space, or choose another "
            "folder, then re-run the same command"
        ) from error


class CachedSampleMap:
    """The set of cached samples of an array. Its file lists only samples that would survive a power failure.

    Attributes:
        samples: whether each sample is cached, `[num_samples]`.
    """

    def __init__(self, path: Path, num_samples: int) -> None:
        if not path.exists():
            atomic_write_bytes(path, bytes(num_samples))
        self._file = np.memmap(path, np.bool_, "r+", shape=(num_samples,))
        self.samples: npt.NDArray[np.bool_] = np.array(self._file)
        self._unflushed: list[npt.NDArray[np.int64]] = []
        self._written: set[Path] = set()
        self._due = time.monotonic() + FLUSH_INTERVAL_S
        self._lock, self._flushing = threading.Lock(), threading.Lock()

    def add(self, rows: npt.NDArray[np.int64], files: Iterable[Path]) -> None:
        """Record that samples were written into these files. A thread syncs them now and then: a disk takes seconds."""
        with self._lock:
            self.samples[rows] = True
            self._unflushed.append(rows)
            self._written.update(files)
            due = time.monotonic() > self._due
            if due:
                self._due = time.monotonic() + FLUSH_INTERVAL_S
        if due:
            threading.Thread(target=self.flush, name="cache-flush", daemon=True).start()

    def flush(self) -> None:
        """Sync the samples that were added, then list them in the file."""
        with self._flushing:
            with self._lock:
                added, files = self._unflushed, self._written
                self._unflushed, self._written = [], set()
            try:
                for path in files:
                    _sync(path)
            except OSError as error:
                logger.warning(
                    "%s: %s; later processes fetch the samples of the last minute again", path, error.strerror
                )
                return
            for rows in added:
                self._file[rows] = True
            self._file.flush()


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fdatasync(fd)
    finally:
        os.close(fd)
