"""A random order that is computed instead of stored: where each position of an epoch leads is a function of the key.

Memory and the time of a batch do not depend on the number of samples. A Feistel network permutes the numbers below
side²: a number is a pair of digits, and each round adds a keyed hash of one digit to the other, modulo `side`. A result
that is no position is permuted again until it is one (cycle walking), which keeps the map one to one. The hash is the
finalizer of splitmix64 (Steele, Lea and Flood, 2014). Keys are raw Philox output, which numpy guarantees permanently.
"""

from __future__ import annotations

from math import isqrt

import numpy as np
import numpy.typing as npt

ROUNDS = 8  # of which four are needed for a pseudorandom order (Luby and Rackoff, 1988)


class Permutation:
    """A permutation of 0 … count - 1.

    Args:
        count: number of positions.
        keys: `[ROUNDS]` uint64.
    """

    def __init__(self, count: int, keys: npt.NDArray[np.uint64]) -> None:
        self._count, self._keys = count, keys
        self._side = np.uint64(isqrt(count - 1) + 1)

    def at(self, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return where these positions lead, `[B]` int64."""
        found = self._permute(positions.astype(np.uint64))
        while len(outside := np.flatnonzero(found >= self._count)):
            found[outside] = self._permute(found[outside])
        return found.astype(np.int64)

    def _permute(self, numbers: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        high, low = np.divmod(numbers, self._side)
        for key in self._keys:
            high, low = low, (high + hashed(low, key)) % self._side
        return high * self._side + low


def hashed(values: npt.NDArray[np.uint64], key: np.uint64) -> npt.NDArray[np.uint64]:
    """Return a hash of each value under a key, uint64 with the shape of `values`: the finalizer of splitmix64."""
    mixed = values * np.uint64(0x9E3779B97F4A7C15) + key
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
