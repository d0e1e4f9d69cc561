"""The order of samples: a function of (seed, epoch) alone."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


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


def held_out_samples(num_samples: int, seed: int, fraction: float) -> npt.NDArray[np.int64]:
    """Draw the samples that are held out from training: a fixed part of the store, ascending, `[n]` int64.

    A larger fraction with the same seed holds out the same samples, and more.
    """
    order = np.argsort(_raw(seed, 0, 3, num_samples), kind="stable")
    return np.sort(order[: round(fraction * num_samples)])


def _raw(seed: int, epoch: int, stream: int, count: int) -> npt.NDArray[np.uint64]:
    generator = np.random.Philox(counter=[0, 0, stream, epoch], key=seed)
    raw: npt.NDArray[np.uint64] = generator.random_raw(count)
    return raw
