"""The order of samples: a function of (seed, epoch) alone.

There are two. Sorting random keys takes time and memory for every sample of an epoch. New runs from stores of `MANY`
samples or more use a permutation that is computed for each batch. A run records which one it began with.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from .permutation import ROUNDS, Permutation, hashed
from .row_set import RowSet

OrderName: TypeAlias = Literal["argsort", "permutation"]
ARGSORT: OrderName = "argsort"  # also of runs and states that record none
MANY = 1 << 24  # below, all runs have the same order, with which earlier ones can be compared


def epoch_order(
    indices: npt.NDArray[np.int64], seed: int, epoch: int, shard_size: int = 1, window: int | None = None
) -> npt.NDArray[np.int64]:
    """Return the samples `indices` in the order of one epoch, `[n]` int64.

    The order is an argsort of raw Philox output: numpy guarantees that this stream never changes, which it does not
    guarantee for `Generator.permutation`. An order can therefore be reproduced years later.

    Args:
        indices: samples in ascending order, `[n]`.
        seed: seed of the run.
        epoch: epoch, counted from 0.
        shard_size: samples per shard; used only with `window`.
        window: shuffle the shards, then the samples among this many shards at a time, for disks with slow random
            access. None: a full shuffle.
    """
    keys = _raw(seed, epoch, 0, len(indices))
    if window is None:
        return indices[np.argsort(keys, kind="stable")]
    shards = indices // shard_size
    rank_of_shard = np.argsort(np.argsort(_raw(seed, epoch, 1, int(shards[-1]) + 1), kind="stable"))
    windows = rank_of_shard[shards] // window
    return indices[np.lexsort((keys, windows))]


def epoch_flips(num_samples: int, seed: int, epoch: int) -> npt.NDArray[np.bool_]:
    """Draw which samples are mirrored in an epoch, each with probability 1/2: `[num_samples]` bool."""
    return np.asarray(_raw(seed, epoch, 2, num_samples) >> np.uint64(63), dtype=bool)


def held_out_samples(num_samples: int, seed: int, fraction: float, order: OrderName = ARGSORT) -> npt.NDArray[np.int64]:
    """Draw the samples that are held out from training: a fixed part of the store, ascending, `[n]` int64.

    A larger fraction with the same seed and order holds out the same samples, and more.
    """
    count = round(fraction * num_samples)
    if order == ARGSORT:
        return np.sort(np.argsort(_raw(seed, 0, 3, num_samples), kind="stable")[:count])
    return np.sort(Permutation(num_samples, _raw(seed, 0, 8, ROUNDS)).at(np.arange(count)))


class ArgsortOrder:
    """The order of runs from stores of fewer than `MANY` samples, and of all runs that began with earlier versions.

    Keeps the order of one epoch, `[n]` int64, and the flips of one.
    """

    def __init__(self, rows: RowSet, seed: int, shard_size: int, window: int | None) -> None:
        self._rows, self._seed, self._shard_size, self._window = rows, seed, shard_size, window
        self._ordered: tuple[int, npt.NDArray[np.int64]] | None = None
        self._flips: tuple[int, npt.NDArray[np.bool_]] | None = None

    def samples(self, epoch: int, start: int, stop: int) -> npt.NDArray[np.int64]:
        """Return the samples at the positions from `start` to `stop` of an epoch, `[stop - start]`."""
        ordered = self._ordered  # threads may replace it
        if ordered is None or ordered[0] != epoch:
            rows = np.asarray(self._rows)
            ordered = (epoch, epoch_order(rows, self._seed, epoch, self._shard_size, self._window))
            self._ordered = ordered
        return ordered[1][start:stop]

    def flipped(self, epoch: int, samples: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Return which of these samples are mirrored in an epoch, `[B]`."""
        flips = self._flips
        if flips is None or flips[0] != epoch:
            flips = (epoch, epoch_flips(self._rows.total, self._seed, epoch))
            self._flips = flips
        return flips[1][samples]


class PermutationOrder:
    """The order of runs from larger stores: computed for the positions that are asked for, so it takes no memory.

    With a window, shards are shuffled, and each position is permuted within those of its window.
    """

    def __init__(self, rows: RowSet, seed: int, shard_size: int, window: int | None) -> None:
        self._rows, self._seed, self._window = rows, seed, window
        bounds = np.arange(0, rows.total + shard_size, shard_size, dtype=np.int64)
        self._bounds = np.empty(0, np.int64) if window is None else rows.count_below(bounds)  # of shards, in `rows`
        self._shards: tuple[int, npt.NDArray[np.int64], npt.NDArray[np.int64]] | None = None

    def samples(self, epoch: int, start: int, stop: int) -> npt.NDArray[np.int64]:
        """Return the samples at the positions from `start` to `stop` of an epoch, `[stop - start]`."""
        positions = np.arange(start, stop, dtype=np.int64)
        if self._window is None:
            return self._rows.at(Permutation(len(self._rows), _raw(self._seed, epoch, 4, ROUNDS)).at(positions))
        shards, ends = self._shards_of(epoch)
        last = np.minimum(np.arange(1, len(shards) // self._window + 2) * self._window, len(shards)) - 1
        first, windows = np.concatenate([[0], ends[last]]), np.searchsorted(ends[last], positions, side="right")
        for window in np.unique(windows).tolist():
            inside, begin = windows == window, first[window]
            keys = _raw(self._seed, epoch, 6, ROUNDS, window)
            positions[inside] = begin + Permutation(int(first[window + 1] - begin), keys).at(positions[inside] - begin)
        places = np.searchsorted(ends, positions, side="right")
        return self._rows.at(self._bounds[shards[places] + 1] - (ends[places] - positions))

    def _shards_of(self, epoch: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return the shards in their order in an epoch, and the position after the last sample of each, `[S]`."""
        found = self._shards  # threads may replace it
        if found is None or found[0] != epoch:
            shards = np.argsort(_raw(self._seed, epoch, 5, len(self._bounds) - 1), kind="stable")
            found = (epoch, shards, np.cumsum(np.diff(self._bounds)[shards]))
            self._shards = found
        return found[1:]

    def flipped(self, epoch: int, samples: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Return which of these samples are mirrored in an epoch, each with probability 1/2, `[B]`."""
        key = _raw(self._seed, epoch, 7, 1)[0]
        return np.asarray(hashed(samples.astype(np.uint64), key) >> np.uint64(63), dtype=bool)


ORDERS: dict[str, type[ArgsortOrder] | type[PermutationOrder]] = {
    "argsort": ArgsortOrder,
    "permutation": PermutationOrder,
}


def default_order(num_samples: int) -> OrderName:
    """Return the name of the order of new runs from a store of this many samples."""
    return ARGSORT if num_samples < MANY else "permutation"


def _raw(seed: int, epoch: int, stream: int, count: int, part: int = 0) -> npt.NDArray[np.uint64]:
    generator = np.random.Philox(counter=[0, part, stream, epoch], key=seed)
    raw: npt.NDArray[np.uint64] = generator.random_raw(count)
    return raw
