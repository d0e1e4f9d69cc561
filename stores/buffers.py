"""Batch buffers that are used again, since fresh memory costs a page fault every 4 KB.

A buffer comes back by itself when the last tensor or array over it is gone: nobody has to hand it back, and nobody
can hold a batch that changes under them.
"""

from __future__ import annotations

import ctypes
import math
import threading
import weakref
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from .reader import ALIGNMENT


class BufferPool:
    """Host memory for batches; page-locked when the batches go to a GPU."""

    def __init__(self, pin_memory: bool) -> None:
        self._pin_memory = pin_memory
        self._lock = threading.Lock()
        self._free: dict[int, list[torch.Tensor]] = {}

    def take(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """An array of this shape and dtype with undefined contents, aligned for O_DIRECT."""
        size = math.prod(shape) * dtype.itemsize
        with self._lock:
            free = self._free.setdefault(size, [])
            memory = free.pop() if free else self._allocate(size)
        # numpy and torch views keep this ctypes object alive, and nothing but it
        lease = (ctypes.c_char * size).from_address(memory.data_ptr() + -memory.data_ptr() % ALIGNMENT)
        weakref.finalize(lease, self._give_back, size, memory).atexit = False
        return np.frombuffer(memoryview(lease), dtype=dtype).reshape(shape)

    def _allocate(self, size: int) -> torch.Tensor:
        return torch.empty(size + ALIGNMENT, dtype=torch.uint8, pin_memory=self._pin_memory)

    def _give_back(self, size: int, memory: torch.Tensor) -> None:
        with self._lock:
            self._free[size].append(memory)
