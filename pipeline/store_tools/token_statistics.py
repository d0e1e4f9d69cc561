"""Mean and variance of the tokens of a group, shard by shard in threads, with a state from which they continue."""

from __future__ import annotations

import time
import zipfile
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import ConfigError, StoreError
from ...stores import Store
from ...stores.checksum import crc32c_bytes
from ...stores.files import atomic_write, confined
from ...stores.layout import num_shards, shard_range
from ...stores.statistics import Per, fingerprint_checksum, statistics_file
from ...stores.tensor_statistics import TensorStatistics
from ...stores.tokens import read_tokens
from ..runtime.machine import num_usable_cpus
from ..runtime.progress import progress

BATCH = 16  # images at a time, whose numbers in float64 fit into the cache
SAVE_S = 30.0  # seconds between saved states


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """What is measured."""

    store: Store
    group: str
    per: Per
    flip: bool  # the flipped views as well
    shards: range

    @property
    def digest(self) -> int:
        """A checksum of everything that the result depends on."""
        settings = (self.per, self.flip, self.shards, fingerprint_checksum(self.store, self.group), len(self.store))
        return crc32c_bytes(repr(settings).encode())

    @property
    def state_file(self) -> Path:
        """The file of a measurement that was stopped."""
        return confined(self.store.path, statistics_file(self.group, self.per)).with_suffix(".partial.npz")


@dataclass(slots=True)
class Measured:
    """The result, or what has been measured so far."""

    next_shard: int
    images: int = 0
    sums: TensorStatistics = field(default_factory=TensorStatistics)

    def save(self, measurement: Measurement) -> None:
        """Write the state next to the statistics."""
        if self.sums.count:
            with atomic_write(measurement.state_file) as temporary, temporary.open("wb") as file:
                counts = np.array([self.next_shard, self.images, self.sums.count, measurement.digest])
                np.savez(file, counts=counts, mean=self.sums.mean, squares=self.sums.squares)

    @classmethod
    def resume(cls, measurement: Measurement) -> Measured:
        """Return the saved state of the same measurement, or an empty one."""
        try:
            with np.load(measurement.state_file, allow_pickle=False) as saved:
                next_shard, images, count, digest = (int(number) for number in saved["counts"])
                if digest == measurement.digest:
                    return cls(next_shard, images, TensorStatistics(count, saved["mean"], saved["squares"]))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):  # there is none, or a damaged one
            pass
        return cls(measurement.shards.start)


def shards_of(store: Store, chosen: tuple[int, int] | None) -> range:
    """Return the shards from the first to the one before the last; None for all.

    Raises:
        ConfigError: the store does not have them.
    """
    total = num_shards(len(store), store.manifest.shard_size)
    first, stop = chosen or (0, total)
    if not 0 <= first < stop <= total:
        raise ConfigError(f"--shards is {first}:{stop}: expected shards from 0 to {total}, the first before the last")
    return range(first, stop)


def measure(measurement: Measurement, keep: bool) -> Measured:
    """Compute the statistics of the stored tokens, as their codec restores them.

    Args:
        measurement: what to measure.
        keep: keep the state of a measurement that is stopped in the store, and continue one.

    Raises:
        StoreError: the group is incomplete, has no flipped views, or no images in these shards.
    """
    store, group, shards = measurement.store, measurement.group, measurement.shards
    if measurement.flip and not store.group(group).spec.has_flips:
        raise StoreError(f"{store.location}: {group} has no flipped views (encode --flip): remove --flip")
    rows = store.valid_indices([group])
    state = Measured.resume(measurement) if keep else Measured(shards.start)
    saved = time.monotonic()
    try:
        with progress("read tokens", len(shards), "shards", state.next_shard - shards.start) as bar:
            for images, sums in _in_order(measurement, rows, range(state.next_shard, shards.stop)):
                state.images += images
                state.sums.merge(sums)
                state.next_shard += 1
                bar.update(1)
                if keep and time.monotonic() - saved > SAVE_S:
                    state.save(measurement)
                    saved = time.monotonic()
    except BaseException:
        if keep:
            state.save(measurement)
        raise
    if not state.images:
        raise StoreError(f"{store.location}: {group} has no images in shards {shards.start}:{shards.stop}")
    return state


def _in_order(
    measurement: Measurement, rows: npt.NDArray[np.int64], shards: range
) -> Iterator[tuple[int, TensorStatistics]]:
    """Yield the number of images of each shard and their statistics, computed in threads, in the order of the shards.

    The order of merging is fixed, so that a resumed run gives the same bits.
    """
    store = measurement.store

    def compute(shard: int) -> tuple[int, TensorStatistics]:
        samples = shard_range(shard, len(store), store.manifest.shard_size)
        first, stop = np.searchsorted(rows, [samples.start, samples.stop])
        return int(stop - first), _of_samples(measurement, rows[first:stop])

    threads = num_usable_cpus()
    with ThreadPoolExecutor(threads, thread_name_prefix="statistics") as pool:
        running: deque[Future[tuple[int, TensorStatistics]]] = deque()
        try:
            for shard in shards:
                running.append(pool.submit(compute, shard))
                if len(running) > threads:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            for future in running:
                future.cancel()


def _of_samples(measurement: Measurement, rows: npt.NDArray[np.int64]) -> TensorStatistics:
    """Return the statistics of samples, and of their flipped views if these are measured as well."""
    found = TensorStatistics()
    for start in range(0, len(rows), BATCH):
        part = rows[start : start + BATCH]
        for flipped in (None, np.ones(len(part), bool)) if measurement.flip else (None,):
            tokens = read_tokens(measurement.store, measurement.group, part, flipped)
            found.append(_arranged(tokens.numpy(), measurement.per))
    return found


def _arranged(tokens: npt.NDArray[Any], per: Per) -> npt.NDArray[Any]:
    """Return tokens [B, N, C] as samples of what is averaged over: [B, C, N], [B N, C] or [B N C, 1]."""
    if per == "position":
        return tokens.transpose(0, 2, 1)
    return tokens.reshape(-1, tokens.shape[2] if per == "channel" else 1)
