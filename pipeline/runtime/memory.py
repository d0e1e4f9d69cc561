"""What glibc's allocator is told, for models on a CPU. Elsewhere than on glibc nothing happens.

By default every activation above some megabytes is fresh memory, zeroed by the kernel page by page: half the time of
a VAE on a CPU. Freed blocks can be kept for the next tensor, but only in glibc's main arena: the arenas that threads
get cannot hold large blocks. Which arena a thread gets is decided once, so the limit of one has to be set before
the first thread starts: by the command line first of all, by Ray in the environment of a worker.
"""

from __future__ import annotations

import ctypes
import sys

ONE_ARENA_ENVIRONMENT = {"MALLOC_ARENA_MAX": "1"}

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # <malloc.h>


def share_one_arena() -> None:
    """Have all threads that start from now on allocate from the main arena."""
    _set(_M_ARENA_MAX, 1)


def keep_freed_memory() -> None:
    """Keep large freed blocks for the next tensor instead of handing them back to the system."""
    share_one_arena()
    _set(_M_MMAP_THRESHOLD, 1 << 30)
    _set(_M_TRIM_THRESHOLD, (1 << 31) - 1)


def _set(parameter: int, value: int) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(parameter, value)
