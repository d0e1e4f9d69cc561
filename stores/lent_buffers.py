"""Memory of DataLoader workers, lent to the process that trains with each batch, and used again when it is released.

torch hands every tensor over in shared memory of its own. Its pages are new for every batch, and zeroing them takes
longer than filling them from the page cache. Here, a worker keeps its memory: a byte next to each buffer tells whether
the other process still uses it. That process maps each buffer once.

Requires Linux, like the reading process: the memory is anonymous (memfd), so a small /dev/shm is sufficient.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import multiprocessing
import os
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from .batch import Batch

LENT = 1


@dataclass(frozen=True, slots=True)
class LentTensor:
    """What a worker sends in place of a tensor: where its memory is."""

    pid: int
    descriptor: int
    inode: int  # descriptors and PIDs are used again, inodes of anonymous memory are not
    shape: tuple[int, ...]
    dtype: str


class WorkerBuffers:
    """The memory of a DataLoader worker for its batches. A buffer is free when no process refers to it."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._lock = threading.Lock()
        self._free: dict[int, list[_Buffer]] = {}
        self._leased: dict[int, _Buffer] = {}  # by address

    def take(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> torch.Tensor:
        """Return a tensor with undefined contents, aligned to pages."""
        size = math.prod(shape) * dtype.itemsize
        with self._lock:
            free = self._free.setdefault(size, [])
            buffer = next((buffer for buffer in list(free) if not buffer.lent), None)
            if buffer is None:
                buffer = _Buffer.new(size)
            else:
                free.remove(buffer)
            self._leased[buffer.address] = buffer
        return torch.from_numpy(buffer.array(shape, dtype, self._release))

    def lend(self, tensor: torch.Tensor) -> LentTensor | None:
        """Return what to send in place of a tensor of this memory; None for one of other memory, or lent already."""
        buffer = self._leased.get(tensor.data_ptr()) if tensor.is_contiguous() else None
        if buffer is None or buffer.lent or buffer.size != tensor.nbytes:
            return None
        buffer.lent = True
        kind = str(tensor.dtype).removeprefix("torch.")
        return LentTensor(self.pid, buffer.descriptor, buffer.inode, tuple(tensor.shape), kind)

    def _release(self, buffer: _Buffer) -> None:
        # without the lock: garbage collection may call this in the thread that holds it
        del self._leased[buffer.address]
        self._free[buffer.size].append(buffer)


class _Buffer:
    """Memory that two processes map: the contents, and on a page of its own the byte that tells if it is lent."""

    def __init__(self, descriptor: int) -> None:
        self.pid, self.descriptor, found = os.getpid(), descriptor, os.fstat(descriptor)
        self.inode = found.st_ino
        self._memory = mmap.mmap(descriptor, found.st_size)
        self._flag = found.st_size - 1
        self.address = np.frombuffer(self._memory, np.uint8, 1).ctypes.data
        self.size = int.from_bytes(self._memory[self._flag - 8 : self._flag], "little")

    @classmethod
    def new(cls, size: int) -> _Buffer:
        descriptor = os.memfd_create("repa-pipe-batch")
        total = (-(-size // mmap.PAGESIZE) + 1) * mmap.PAGESIZE
        os.ftruncate(descriptor, total)
        os.pwrite(descriptor, size.to_bytes(8, "little"), total - 9)
        return cls(descriptor)

    @property
    def lent(self) -> bool:
        return self._memory[self._flag] == LENT

    @lent.setter
    def lent(self, lent: bool) -> None:
        self._memory[self._flag] = LENT if lent else 0

    def array(
        self, shape: tuple[int, ...], dtype: np.dtype[Any], released: Callable[[_Buffer], None]
    ) -> npt.NDArray[Any]:
        """Return the contents. `released` is called with the buffer when the last view of the array is gone."""
        lease = (ctypes.c_char * self.size).from_buffer(self._memory)
        weakref.finalize(lease, released, self).atexit = False
        return np.frombuffer(memoryview(lease), dtype=dtype).reshape(shape)


_workers_own: WorkerBuffers | None = None
_borrowed: dict[int, dict[int, _Buffer]] = {}  # by PID of the worker, then by inode
_borrowed_lock = threading.Lock()


def worker_buffers() -> WorkerBuffers:
    """Return the memory of this process, which is a DataLoader worker."""
    global _workers_own  # noqa: PLW0603 - a fork must not use what its parent has lent
    if _workers_own is None or _workers_own.pid != os.getpid():
        _workers_own = WorkerBuffers()
    return _workers_own


def _reduce(batch: Batch) -> tuple[Any, ...]:
    """Pickle a batch for another process: tensors of a worker's memory are lent, all others pass as torch does it."""
    own = _workers_own
    if own is None or own.pid != os.getpid():
        return Batch, tuple(batch)

    def sent(value: Any) -> Any:
        if isinstance(value, list):
            return [sent(each) for each in value]
        return (own.lend(value) or value) if isinstance(value, torch.Tensor) else value

    return _receive, tuple(sent(value) for value in batch)


def _receive(*values: Any) -> Batch:
    def received(value: Any) -> Any:
        if isinstance(value, list):
            return [received(each) for each in value]
        return _borrow(value) if isinstance(value, LentTensor) else value

    return Batch(*(received(value) for value in values))


def _borrow(lent: LentTensor) -> torch.Tensor:
    with _borrowed_lock:
        known = _borrowed.get(lent.pid, {})
        buffer = known.get(lent.inode)
        if buffer is None:
            buffer = _map(lent)
            if (worker := _child(lent.pid)) is not None:
                if lent.pid not in _borrowed:
                    _borrowed[lent.pid] = {}
                    weakref.finalize(worker, _forget, lent.pid).atexit = False
                _borrowed[lent.pid][lent.inode] = buffer
    return torch.from_numpy(buffer.array(lent.shape, np.dtype(lent.dtype), _give_back))


def _map(lent: LentTensor) -> _Buffer:
    descriptor = os.open(f"/proc/{lent.pid}/fd/{lent.descriptor}", os.O_RDWR)
    try:
        return _Buffer(descriptor)
    finally:
        os.close(descriptor)


def _child(pid: int) -> Any:
    """Return the worker, whose end is the end of what it has lent: torch drops it with the DataLoader's iterator."""
    return next((each for each in multiprocessing.active_children() if each.pid == pid), None)


def _forget(pid: int) -> None:
    _borrowed.pop(pid, None)


def _give_back(buffer: _Buffer) -> None:
    if buffer.pid == os.getpid():  # not if a fork drops its copy of a batch that its parent still uses
        buffer.lent = False


ForkingPickler.register(Batch, _reduce)
