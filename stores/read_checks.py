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
from .layout import CRC32C
from .manifest import Commit, Manifest

CheckReads: TypeAlias = Literal["first", "every", "never"]
FIRST: CheckReads = "first"
KEPT_BYTES = 1 << 28  # per group
RECHECKED = 4  # of 256 later reads: a checksum of 393 KB takes 12 to 30 microseconds, so 0.5 per sample at most

logger = logging.getLogger(__name__)

Fetch: TypeAlias = Callable[[Sequence[str], bool], None]  # names of files; whether to replace local copies


class RowChecksums:
    """The stored CRC-32C of every sample in each array of a group. Those of a shard are loaded when they are needed.

    They are kept up to KEPT_BYTES, which is more than the checksums of 30 million samples in two arrays.

    Args:
        store: local folder of the store.
        group: path of the group.
        arrays: its arrays, in the order of the columns of the array `crc32c`.
        manifest: root attributes of the store.
        fetch: makes files of a store behind a URL available in `store`; None for a local store.
    """

    def __init__(self, store: Path, group: str, arrays: Sequence[str], manifest: Manifest, fetch: Fetch | None) -> None:
        self._store, self._group, self._fetch = store, group, fetch
        self._shard_size = manifest.shard_size
        self._columns = {array: column for column, array in enumerate(arrays)}
        self._shard_bytes = 4 * self._shard_size * len(arrays)
        self._kept: dict[int, npt.NDArray[np.uint32]] = {}  # by shard: [shard_size, arrays]

    def of(self, array: str, rows: npt.NDArray[np.int64], commits: Mapping[int, Commit]) -> npt.NDArray[np.uint32]:
        """Return the checksums of samples in an array, `[n]`.

        Raises:
            StoreError: the checksums of a shard are missing, or do not match its commit record.
        """
        shards, places = np.divmod(rows, self._shard_size)
        order = np.argsort(shards, kind="stable")
        starts = np.flatnonzero(np.diff(shards[order], prepend=-1)).tolist()
        blocks = self._blocks(shards[order[starts]].tolist(), commits)
        found, column = np.empty(len(rows), dtype=np.uint32), self._columns[array]
        for block, start, stop in zip(blocks, starts, [*starts[1:], len(rows)], strict=True):
            wanted = order[start:stop]
            found[wanted] = block[places[wanted], column]
        return found

    def _blocks(self, shards: list[int], commits: Mapping[int, Commit]) -> list[npt.NDArray[np.uint32]]:
        """Return the checksums of shards, each `[shard_size, arrays]`."""
        # without a lock, which a fork could copy while it is held: threads may load or drop the same values twice
        known = {shard: block for shard in shards if (block := self._kept.get(shard)) is not None}
        loaded = self._load([shard for shard in shards if shard not in known], commits)
        for shard in list(self._kept)[: len(loaded)] if self._is_full else ():
            self._kept.pop(shard, None)
        self._kept.update(loaded)
        return [known[shard] if shard in known else loaded[shard] for shard in shards]

    @property
    def _is_full(self) -> bool:
        return len(self._kept) * self._shard_bytes > KEPT_BYTES

    def _load(self, shards: list[int], commits: Mapping[int, Commit]) -> dict[int, npt.NDArray[np.uint32]]:
        loaded = {}
        if self._fetch is not None and shards:
            self._fetch([self._file(shard) for shard in shards], False)
        for shard in shards:
            found = self._read(shard, commits[shard])
            if found is None and self._fetch is not None:
                logger.warning("%s is damaged in the cache: fetching it again", self._store / self._file(shard))
                self._fetch([self._file(shard)], True)
                found = self._read(shard, commits[shard])
            if found is None:
                raise StoreError(
                    f"{self._store / self._file(shard)}, the checksums of samples, does not match its commit record: "
                    "run 'repa-pipe store repair STORE'"
                )
            loaded[shard] = found
        return loaded

    def _read(self, shard: int, commit: Commit) -> npt.NDArray[np.uint32] | None:
        """Return the checksums of a shard, `[shard_size, arrays]`; None if they are missing or damaged."""
        recorded = commit.files.get(f"{CRC32C}/c/{shard}/0")
        try:
            data = (self._store / self._file(shard)).read_bytes()
        except FileNotFoundError:
            return None
        if recorded != {"bytes": len(data), "crc32c": crc32c_bytes(data)} or len(data) != self._shard_bytes:
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
        self._checked = np.frombuffer(mmap.mmap(-1, num_samples // 8 + 1), dtype=np.uint8)  # bits that forks share

    def due(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Return which of the samples `rows` are compared in this read, `[n]`."""
        if self._every:
            return np.ones(len(rows), dtype=bool)
        # random bytes of the system differ in every fork, and leave all seeds alone
        again = np.frombuffer(os.urandom(len(rows)), dtype=np.uint8) < RECHECKED
        known: npt.NDArray[np.bool_] = (self._checked[rows >> 3] & _bits(rows)) > 0
        return ~known | again

    def expected(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.uint32]:
        """Return the stored checksums of the samples `rows`, `[n]`."""
        return self._checksums.of(self._array, rows, self._commits)

    def passed(self, rows: npt.NDArray[np.int64]) -> None:
        """Record that the samples `rows` matched their checksums."""
        np.bitwise_or.at(self._checked, rows >> 3, _bits(rows))  # a bit that two threads lose is compared again


def _bits(rows: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    """Return the bit of each sample in its byte."""
    return np.uint8(1) << (rows & 7).astype(np.uint8)
