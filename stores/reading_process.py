"""Reads batches in a separate process, into memory shared with the training process.

The reader's threads need the GIL only briefly, but a training loop that keeps Python busy (many small kernels, Python
code in the loss) delays them every time. A separate process removes these delays, and no bytes are copied between the
processes.
"""

from __future__ import annotations

import mmap
import multiprocessing
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import StoreError
from .store import Store


@dataclass(frozen=True, slots=True)
class SharedBuffer:
    """Handle of one array of a batch in the training process's memory."""

    file: str  # path of the memory's file descriptor
    shape: tuple[int, ...]
    dtype: str


class ReadingProcess:
    """The training process's side of the connection.

    Requires Linux: the memory is anonymous (memfd), so a small /dev/shm is sufficient.
    """

    def __init__(self, store: Store) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would copy CUDA's state and locks held by other threads
        self._lock = threading.Lock()  # prefetching and the caller may read at the same time
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(store, theirs), name="store-read", daemon=True)
        self._process.start()
        theirs.close()

    def read(
        self,
        names: Sequence[str],
        indices: npt.NDArray[np.int64],
        out: Mapping[str, SharedBuffer],
        direct: bool,
        flipped: npt.NDArray[np.bool_] | None,
    ) -> None:
        """Fill the buffers of `out`. Arguments and errors are those of `Store.read`."""
        try:
            with self._lock:
                self._connection.send((names, indices, out, direct, flipped))
                error = self._connection.recv()
        except (EOFError, OSError) as gone:
            raise StoreError(f"the process that reads the store has ended ({self._process.exitcode})") from gone
        if error is not None:
            raise error

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.join()


def _serve(store: Store, connection: Connection) -> None:
    """Answer read requests until the other end is closed or its process has ended."""
    memory: dict[str, mmap.mmap] = {}

    def view(buffer: SharedBuffer) -> npt.NDArray[Any]:
        if buffer.file not in memory:
            fd = os.open(buffer.file, os.O_RDWR)
            memory[buffer.file] = mmap.mmap(fd, 0)
            os.close(fd)
        count = int(np.prod(buffer.shape))
        return np.frombuffer(memory[buffer.file], buffer.dtype, count).reshape(buffer.shape)

    with store:
        while True:
            try:
                names, indices, out, direct, flipped = connection.recv()
            except (EOFError, KeyboardInterrupt):
                return
            error = None
            try:
                buffers = {name: view(buffer) for name, buffer in out.items()}
                store.read(names, indices, out=buffers, direct=direct, flipped=flipped)
            except Exception as found:
                error = found
            connection.send(error)
