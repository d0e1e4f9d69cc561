"""A set of samples that takes little memory when it is all samples of a store, or all but some."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

PART = 1 << 20


@dataclass(frozen=True, slots=True, eq=False)
class RowSet:
    """Samples of a store in ascending order.

    Attributes:
        total: number of samples of the store.
        listed: the samples, ascending int64 `[n]`. None: all but `excluded`.
        skips: of every sample that is left out, how many samples of the set precede it, ascending int64 `[k]`. Empty if
            the samples are listed.
    """

    total: int
    listed: npt.NDArray[np.int64] | None
    skips: npt.NDArray[np.int64]

    @classmethod
    def of_mask(cls, mask: npt.NDArray[np.bool_]) -> Self:
        """Return the set of the samples for which `mask`, `[total]`, is true, by them or by the others: the fewer."""
        if 2 * np.count_nonzero(mask) <= len(mask):
            return cls.listing(len(mask), np.flatnonzero(mask))
        return cls.all_but(len(mask), np.flatnonzero(~mask))

    @classmethod
    def listing(cls, total: int, listed: npt.NDArray[np.int64]) -> Self:
        """Return the set of these samples of `total`, ascending int64 `[n]`."""
        return cls(total, listed, np.empty(0, np.int64))

    @classmethod
    def all_but(cls, total: int, excluded: npt.NDArray[np.int64]) -> Self:
        """Return the set of all samples without `excluded`, in any order."""
        distinct = np.unique(excluded).astype(np.int64)
        return cls(total, None, distinct - np.arange(len(distinct)))

    @property
    def excluded(self) -> npt.NDArray[np.int64]:
        """The samples that are left out of all, ascending int64 `[k]`; empty if the samples are listed."""
        return self.skips + np.arange(len(self.skips))

    def __len__(self) -> int:
        return self.total - len(self.skips) if self.listed is None else len(self.listed)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        """Return the samples, `[n]`."""
        rows = self.at(np.arange(len(self))) if self.listed is None else self.listed
        return rows if dtype is None else rows.astype(dtype)

    def at(self, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the samples at these positions of the set, `[B]` int64."""
        if self.listed is not None:
            return self.listed[positions]
        return positions + np.searchsorted(self.skips, positions, side="right")

    def count_below(self, bounds: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return how many samples of the set are less than each of `bounds`, `[B]` int64."""
        if self.listed is not None:
            return np.searchsorted(self.listed, bounds)
        return np.minimum(bounds, self.total) - np.searchsorted(self.excluded, bounds)

    def contains(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Return which of the samples `rows` belong to the set, `[B]`."""
        return np.isin(rows, self.excluded, invert=True) if self.listed is None else np.isin(rows, self.listed)

    def without(self, rows: npt.NDArray[np.int64]) -> RowSet:
        """Return the set without some samples, which may be in any order."""
        if self.listed is None:
            return RowSet.all_but(self.total, np.concatenate([self.excluded, rows]))
        return RowSet(self.total, self.listed[np.isin(self.listed, rows, invert=True)], self.skips)

    @property
    def digest(self) -> str:
        """SHA-256 of the samples as little-endian int64, as hexadecimal digits."""
        digest = hashlib.sha256()
        for part in self.parts():
            digest.update(part.astype("<i8").tobytes())
        return digest.hexdigest()

    def parts(self) -> Iterator[npt.NDArray[np.int64]]:
        """Yield all samples in parts of at most `PART`."""
        for start in range(0, len(self), PART):
            yield self.at(np.arange(start, min(start + PART, len(self))))
