"""A pseudo-random permutation of 0 … n - 1 that is computed where it is needed, instead of being stored.

A Feistel network on two digits (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002): the number x is
written as (x // b, x % b) with a · b just above n, and each round adds a keyed hash of one digit to the other. Results
outside of the domain, at most one in sqrt(n), are permuted again until they are inside. Memory does not depend on n.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

ROUNDS = 8

Words = npt.NDArray[np.uint64]


def mixed(words: Words) -> Words:
    """Return a hash of 64-bit words: the finalizer of splitmix64 (Steele, Lea and Flood, 2014)."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def permuted(positions: npt.NDArray[np.int64], count: int, keys: Words) -> npt.NDArray[np.int64]:
    """Return where a permutation of `count` numbers takes these positions, `[n]` int64.

    Args:
        positions: numbers in [0, count), `[n]`.
        count: size of the domain.
        keys: random words, `[ROUNDS]`. They determine the permutation.
    """
    found = _network(positions.astype(np.uint64), count, keys)
    outside = np.flatnonzero(found >= count)
    while len(outside):
        found[outside] = _network(found[outside], count, keys)
        outside = outside[found[outside] >= count]
    return found.astype(np.int64)


def _network(numbers: Words, count: int, keys: Words) -> Words:
    high_base = math.isqrt(count - 1) + 1
    low_base = -(-count // high_base)
    high, low = np.divmod(numbers, np.uint64(low_base))
    for number in range(0, ROUNDS, 2):
        high = (high + mixed(low + keys[number])) % np.uint64(high_base)
        low = (low + mixed(high + keys[number + 1])) % np.uint64(low_base)
    return high * np.uint64(low_base) + low
