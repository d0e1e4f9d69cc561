"""Reusable batch buffers: newly allocated memory costs a page fault per 4 KB.

A buffer returns to its pool when the last tensor or array over it is released. Nothing has to be returned explicitly,
and a batch that is still referenced is never overwritten.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import threading
import weakref
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from .reader import ALIGNMENT
from .reading_process import SharedBuffer


class BufferPool:
    """Host memory for batches.

    Args:
        pin_memory: page-lock the memory, for transfers to a GPU.
        shared: allocate memory that another process can fill (Linux).
    """

    def __init__(self, pin_memory: bool, shared: bool = False) -> None:
        self._pin_memory, self._shared = pin_memory, shared
        self._lock = threading.Lock()
        self._free: dict[int, list[torch.Tensor]] = {}
        self._descriptors: dict[int, int] = {}  # by address, for shared memory

    def take(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """Return an array with undefined contents, aligned for O_DIRECT."""
        size = math.prod(shape) * dtype.itemsize
        with self._lock:
            free = self._free.setdefault(size, [])
            memory = free.pop() if free else self._allocate(size)
        # views in numpy and torch keep this ctypes object alive, and nothing else does
        lease = (ctypes.c_char * size).from_address(memory.data_ptr() + -memory.data_ptr() % ALIGNMENT)
        weakref.finalize(lease, self._release, size, memory).atexit = False
        return np.frombuffer(memoryview(lease), dtype=dtype).reshape(shape)

    def shared_buffer(self, array: npt.NDArray[Any]) -> SharedBuffer:
        """Return a handle with which another process can map an array returned by `take`."""
        descriptor = self._descriptors[array.ctypes.data]
        return SharedBuffer(f"/proc/{os.getpid()}/fd/{descriptor}", array.shape, array.dtype.name)

    def _allocate(self, size: int) -> torch.Tensor:
        if not self._shared and not self._pin_memory:
            memory = mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            with suppress(OSError):  # kernels without huge pages
                memory.madvise(mmap.MADV_HUGEPAGE)  # copies into pages of 4 KB take an eighth longer
            return torch.frombuffer(memory, dtype=torch.uint8)
        if not self._shared:
            return torch.empty(size + ALIGNMENT, dtype=torch.uint8, pin_memory=True)
        descriptor = os.memfd_create("repa-pipe-batch")
        os.ftruncate(descriptor, size)
        shared = torch.frombuffer(mmap.mmap(descriptor, size), dtype=torch.uint8)  # page-aligned
        self._descriptors[shared.data_ptr()] = descriptor
        if self._pin_memory:
            torch.cuda.check_error(torch.cuda.cudart().cudaHostRegister(shared.data_ptr(), size, 0))
        return shared

    def _release(self, size: int, memory: torch.Tensor) -> None:
        with self._lock:
            self._free[size].append(memory)
