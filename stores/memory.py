"""How much memory this process may use, and which samples the page cache shall hold in it."""

from __future__ import annotations

import os

import numpy as np

from ..control_groups import contents, folders_of
from .row_set import RowSet

LIMITS = ("memory.max", "memory.high", "memory.limit_in_bytes")  # of versions 2, 2 and 1 of control groups
FITS = 0.7  # of the memory: what the page cache can become
KEPT = 0.5  # of the memory, if the samples do not fit: pages that are kept must be safe from eviction


def usable_memory() -> int:
    """Return the bytes of this machine's memory, or the lowest limit of the process's control groups if it is lower."""
    found = [contents(folder / name) for folder in folders_of("memory") for name in LIMITS]
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([total, *(int(limit) for limit in found if limit and limit.isdigit())])  # not "max"


def shards_in_memory(rows: RowSet, sample_bytes: int, shard_size: int) -> int | None:
    """Return how many shards, from the first on, the page cache shall hold; None: all, since the samples fit.

    Of more samples than fit, a fixed part stays in memory. If all were read through the page cache, they would be
    evicted before they are read again.

    Args:
        rows: the samples that are read.
        sample_bytes: bytes of a sample in all arrays that are read.
        shard_size: samples per shard.
    """
    memory = usable_memory()
    if len(rows) * sample_bytes <= FITS * memory:
        return None
    return int(rows.at(np.array([KEPT * memory // sample_bytes], dtype=np.int64))[0]) // shard_size
