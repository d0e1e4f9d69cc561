"""Settings of glibc's allocator for models on a CPU. With another C library nothing happens.

By default, every activation above some megabytes is fresh memory that the kernel zeroes page by page, which takes half
of the time of a VAE on a CPU. Freed blocks can be kept for the next tensor, but only in glibc's main arena, since the
arenas of threads cannot hold large blocks. A thread is assigned an arena once, so the limit of one arena must be set
before the first thread starts: the command line sets it before anything else, Ray workers through their environment.
"""

from __future__ import annotations

import ctypes
import sys

ONE_ARENA_ENVIRONMENT = {"MALLOC_ARENA_MAX": "1"}

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # <malloc.h>


def share_one_arena() -> None:
    """Let all threads that start from now on allocate from the main arena."""
    _set(_M_ARENA_MAX, 1)


def keep_freed_memory() -> None:
    """Keep large freed blocks for the next tensor instead of returning them to the system."""
    share_one_arena()
    _set(_M_MMAP_THRESHOLD, 1 << 30)
    _set(_M_TRIM_THRESHOLD, (1 << 31) - 1)


def _set(parameter: int, value: int) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(parameter, value)
