"""How much memory this process may use, and which samples the page cache shall hold in it."""

from __future__ import annotations

import os

import numpy as np
import numpy.typing as npt

from ..control_groups import contents, folders_of

LIMITS = ("memory.max", "memory.high", "memory.limit_in_bytes")  # of versions 2, 2 and 1 of control groups
FITS = 0.7  # of the memory: what the page cache can become
KEPT = 0.5  # of the memory, if the samples do not fit: pages that are kept must be safe from eviction


def usable_memory() -> int:
    """Return the bytes of this machine's memory, or the lowest limit of the process's control groups if it is lower."""
    found = [contents(folder / name) for folder in folders_of("memory") for name in LIMITS]
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([total, *(int(limit) for limit in found if limit and limit.isdigit())])  # not "max"


def shards_in_memory(indices: npt.NDArray[np.int64], sample_bytes: int, shard_size: int) -> int | None:
    """Return how many shards, from the first on, the page cache shall hold; None: all, since the samples fit.

    Of more samples than fit, a fixed part stays in memory. If all were read through the page cache, they would be
    evicted before they are read again.

    Args:
        indices: the samples that are read, ascending.
        sample_bytes: bytes of a sample in all arrays that are read.
        shard_size: samples per shard.
    """
    memory = usable_memory()
    if len(indices) * sample_bytes <= FITS * memory:
        return None
    return int(indices[int(KEPT * memory // sample_bytes)]) // shard_size
