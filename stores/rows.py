"""Sets of samples in ascending order, which take no memory if they are all samples but a few."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

BLOCK = 1 << 20

Indices = npt.NDArray[np.int64]


class Rows:
    """Some samples of a store, by their position among these samples.

    Args:
        total: number of samples of the store.
        excluded: samples of the store that do not belong to the set, ascending `[m]`.
        chosen: the samples of the set, ascending `[n]`. None: all but the excluded ones.
    """

    def __init__(self, total: int, excluded: npt.NDArray[Any], chosen: Indices | None = None) -> None:
        if chosen is not None:
            chosen = chosen[~np.isin(chosen, excluded)]
        self._chosen, self._count = chosen, total - len(excluded) if chosen is None else len(chosen)
        self._before = excluded - np.arange(len(excluded))  # of excluded samples: how many of the set come before

    def __len__(self) -> int:
        return self._count

    def take(self, positions: Indices) -> Indices:
        """Return the samples at positions in [0, len), `[n]` int64."""
        if self._chosen is not None:
            return self._chosen[positions]
        return positions + np.searchsorted(self._before, positions, side="right")

    def array(self) -> Indices:
        """Return all samples, `[n]` int64."""
        return self.take(np.arange(self._count)) if self._chosen is None else self._chosen

    @property
    def digest(self) -> str:
        """SHA-256 of the samples as int64, as hexadecimal digits."""
        found = hashlib.sha256()
        for block in self._blocks():
            found.update(block.astype("<i8").tobytes())
        return found.hexdigest()

    def _blocks(self) -> Iterator[Indices]:
        for start in range(0, self._count, BLOCK):
            yield self.take(np.arange(start, min(start + BLOCK, self._count)))
