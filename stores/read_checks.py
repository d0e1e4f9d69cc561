"""Checks of samples while they are read: which of them are compared with their stored CRC-32C, and with which value.

A process compares a sample when it reads it for the first time, and a random 1/64 of later reads. Forked processes
share what their parent has compared, so that the workers of a DataLoader do not start again in every epoch.
"""

from __future__ import annotations

import logging
import mmap
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from ..errors import StoreError
from .checksum import crc32c_bytes
from .layout import CRC32C, num_shards
from .manifest import Commit, Manifest

CheckReads: TypeAlias = Literal["first", "every", "never"]
FIRST: CheckReads = "first"
RECHECKED = 4  # of 256 later reads: a checksum of 393 KB takes 12 to 30 microseconds, so 0.5 per sample at most

KEPT_BYTES = 64 << 20  # of checksums per group: of 16 million samples in one array, 4 million in four

logger = logging.getLogger(__name__)

Fetch: TypeAlias = Callable[[Sequence[str], bool], None]  # names of files; whether to replace local copies


class RowChecksums:
    """The stored CRC-32C of every sample in each array of a group. Those of a shard are loaded on first use.

    Args:
        store: local folder of the store.
        group: path of the group.
        arrays: its arrays, in the order of the columns of the array `crc32c`.
        manifest: root attributes of the store.
        fetch: makes files of a store behind a URL available in `store`; None for a local store.
    """

    def __init__(self, store: Path, group: str, arrays: Sequence[str], manifest: Manifest, fetch: Fetch | None) -> None:
        self._store, self._group, self._fetch = store, group, fetch
        self._shard_size, total = manifest.shard_size, num_shards(manifest.num_samples, manifest.shard_size)
        self._columns = {array: column for column, array in enumerate(arrays)}
        self._sample_bytes = 4 * len(arrays)
        self._kept = max(1, KEPT_BYTES // (self._shard_size * self._sample_bytes))
        self._loaded: dict[int, npt.NDArray[np.uint32]] = {}  # [shard_size, arrays] by shard, the oldest first
        self._recorded = np.full(total, -1, dtype=np.int64)  # checksum of each file, once its commit record was read

    def of(self, array: str, rows: npt.NDArray[np.int64], commits: Mapping[int, Commit]) -> npt.NDArray[np.uint32]:
        """Return the checksums of samples in an array, `[n]`.

        Raises:
            StoreError: the checksums of a shard are missing, or do not match its commit record.
        """
        shards, places = np.divmod(rows, self._shard_size)
        used, inverse = np.unique(shards, return_inverse=True)
        # without a lock, which a fork could copy while it is held: threads may load the same values twice
        loaded = {shard: self._loaded.get(shard) for shard in used.tolist()}
        found = {shard: values for shard, values in loaded.items() if values is not None}
        if len(found) < len(used):
            found |= self._load([shard for shard in loaded if shard not in found], commits)
        stacked = np.stack([found[shard][:, self._columns[array]] for shard in used.tolist()])
        return stacked[inverse, places]

    def _load(self, shards: list[int], commits: Mapping[int, Commit]) -> dict[int, npt.NDArray[np.uint32]]:
        if self._fetch is not None:
            self._fetch([self._file(shard) for shard in shards], False)
        loaded = {shard: self._verified(shard, commits) for shard in shards}
        self._loaded.update(loaded)
        for old in list(self._loaded)[: -self._kept]:
            self._loaded.pop(old, None)
        return loaded

    def _verified(self, shard: int, commits: Mapping[int, Commit]) -> npt.NDArray[np.uint32]:
        found = self._read(shard, commits)
        if found is None and self._fetch is not None:
            logger.warning("%s is damaged in the cache: fetching it again", self._store / self._file(shard))
            self._fetch([self._file(shard)], True)
            found = self._read(shard, commits)
        if found is None:
            raise StoreError(
                f"{self._store / self._file(shard)}, the checksums of samples, does not match its commit record: "
                "run 'repa-pipe store repair STORE'"
            )
        return found

    def _read(self, shard: int, commits: Mapping[int, Commit]) -> npt.NDArray[np.uint32] | None:
        """Return the checksums of a shard, `[shard_size, arrays]`; None if they are missing or damaged."""
        length = self._shard_size * self._sample_bytes
        if self._recorded[shard] < 0:
            recorded = commits[shard].files.get(f"{CRC32C}/c/{shard}/0")
            if recorded is None or recorded["bytes"] != length:
                return None
            self._recorded[shard] = recorded["crc32c"]
        try:
            data = (self._store / self._file(shard)).read_bytes()
        except FileNotFoundError:
            return None
        if len(data) != length or crc32c_bytes(data) != self._recorded[shard]:
            return None
        return np.frombuffer(data, dtype="<u4").reshape(self._shard_size, -1)

    def _file(self, shard: int) -> str:
        return f"{self._group}/{CRC32C}/c/{shard}/0"


class ArrayChecks:
    """The checks of one array: its stored checksums, and which samples this process has compared with them."""

    def __init__(
        self, checksums: RowChecksums, array: str, num_samples: int, commits: Mapping[int, Commit], every: bool
    ) -> None:
        self._checksums, self._array, self._commits, self._every = checksums, array, commits, every
        # One bit per sample, in memory that forks share. Of two processes that set bits of a byte at the same time, one
        # may clear the other's: that sample is compared again.
        self._checked = np.frombuffer(mmap.mmap(-1, -(-num_samples // 8)), dtype=np.uint8)

    def due(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Return which of the samples `rows` are compared in this read, `[n]`."""
        if self._every:
            return np.ones(len(rows), dtype=bool)
        # random bytes of the system differ in every fork, and leave all seeds alone
        again = np.frombuffer(os.urandom(len(rows)), dtype=np.uint8) < RECHECKED
        return ~self.checked(rows) | again

    def checked(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Return which of the samples `rows` have matched their checksums, `[n]`."""
        bits = self._checked[rows >> 3] & np.left_shift(1, rows & 7).astype(np.uint8)
        found: npt.NDArray[np.bool_] = bits != 0
        return found

    def expected(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.uint32]:
        """Return the stored checksums of the samples `rows`, `[n]`."""
        return self._checksums.of(self._array, rows, self._commits)

    def passed(self, rows: npt.NDArray[np.int64]) -> None:
        """Record that the samples `rows` matched their checksums."""
        np.bitwise_or.at(self._checked, rows >> 3, np.left_shift(1, rows & 7).astype(np.uint8))
