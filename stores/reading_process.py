"""Reads batches in a separate process, into memory shared with the training process.

The reader's threads need the GIL only briefly, but a training loop that keeps Python busy (many small kernels, Python
code in the loss) delays them every time. A separate process removes these delays, and no bytes are copied between the
processes.
"""

from __future__ import annotations

import atexit
import mmap
import multiprocessing
import os
import signal
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import StoreError
from .store import Store

READ_LIMIT_S = 600.0  # a batch of 100 MB takes 100 s over a link of 1 MB/s, and a server is retried for minutes
END_LIMIT_S = 2.0


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
        # multiprocessing sends SIGTERM at exit, which the process ignores, and waits for it
        atexit.register(_close, weakref.ref(self))

    def read(
        self,
        names: Sequence[str],
        indices: npt.NDArray[np.int64],
        out: Mapping[str, SharedBuffer],
        **options: Any,
    ) -> None:
        """Fill the buffers of `out`. Arguments, options and errors are those of `Store.read`.

        Raises:
            StoreError: the process has ended, or has not answered for READ_LIMIT_S; then it is ended.
        """
        try:
            with self._lock:
                self._connection.send((names, indices, out, options))
                self._wait()
                error = self._connection.recv()
        except (EOFError, OSError) as gone:
            self._process.join(END_LIMIT_S)  # until the exit code is known
            raise StoreError(
                f"the process that reads the store (PID {self._process.pid}) has ended with exit code "
                f"{self._process.exitcode}: re-run the command, without --reader-process "
                "(process=True) if it happens again"
            ) from gone
        if error is not None:
            raise error

    def _wait(self) -> None:
        limit = time.monotonic() + READ_LIMIT_S
        while not self._connection.poll(1.0):
            if time.monotonic() > limit:
                state = _state_of(self._process.pid)
                self._process.kill()  # an answer that is late would be taken for that of the next request
                raise StoreError(
                    f"the process that reads the store (PID {self._process.pid}, {state}) has not answered for "
                    f"{READ_LIMIT_S:g} s: check the disk or the server of the store, then re-run the command"
                )

    def close(self) -> None:
        """End the process; it is killed if it does not end by itself within seconds."""
        self._connection.close()
        self._process.join(END_LIMIT_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join(END_LIMIT_S)


def _close(process: weakref.ref[ReadingProcess]) -> None:
    found = process()
    if found is not None:
        found.close()


def _state_of(pid: int | None) -> str:
    """Return the state of a process in words, such as `T (stopped)`."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return "state unknown"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("State:")), "state unknown")


def _serve(store: Store, connection: Connection) -> None:
    """Answer read requests until the other end is closed or its process has ended.

    Signals go to all processes of a terminal, a torchrun rank or a Slurm step. Those that ask the training to stop are
    its business alone: it still needs this process.
    """
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
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
                names, indices, out, options = connection.recv()
            except EOFError:
                return
            error = None
            try:
                buffers = {name: view(buffer) for name, buffer in out.items()}
                store.read(names, indices, out=buffers, **options)
            except Exception as found:
                error = found
            connection.send(error)
