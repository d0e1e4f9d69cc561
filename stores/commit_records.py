"""The commit records of a group, read when they are needed.

A store of 100 million samples has 100,000 of them per group, which hold 650 MB of text and take ten seconds to parse.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ..errors import StoreError
from .layout import commit_file
from .manifest import Commit, Quarantined, committed_shards, read_commit

KEPT = 4096  # groups of up to this many shards have all of their records read on first use, and kept
IN_USE = 256  # records of larger groups in memory, of 8 to 50 KB; they are needed when a shard is opened
READERS = 8  # threads: records on a network file system take half a millisecond each
PART = 1024  # records that a thread reads at a time
_NONE = b'"quarantined": []'  # in a record as it is written; within a text, quotation marks have a backslash


class CommitRecords(Mapping[int, Commit]):
    """The commit records of a group, by shard in ascending order.

    In groups of more than `KEPT` shards, a record is read and checked when its shard is read for the first time.

    Args:
        store: local folder of the store.
        group: path of the group.
        require_fitting: raises StoreError if a record does not describe the shard.

    Raises:
        StoreError: a record is damaged, also from methods.
    """

    def __init__(self, store: Path, group: str, require_fitting: Callable[[int, Commit], None]) -> None:
        self._store, self._group, self._require_fitting = store, group, require_fitting
        self._shards = committed_shards(store, group)
        self._quarantined: dict[int, Sequence[Quarantined]] = {}  # of the shards that were read
        small = len(self._shards) <= KEPT
        self._read = functools.lru_cache(maxsize=KEPT if small else IN_USE)(self._read_record)
        if small:
            for shard in self:
                self[shard]

    def __len__(self) -> int:
        return len(self._shards)

    def __contains__(self, shard: object) -> bool:
        return shard in self._shards

    def __iter__(self) -> Iterator[int]:
        return iter(sorted(self._shards))

    def __getitem__(self, shard: int) -> Commit:
        if shard not in self._shards:
            raise KeyError(shard)
        return self._read(shard)

    def _read_record(self, shard: int) -> Commit:
        commit = read_commit(self._store, self._group, shard)
        if commit is None:
            raise StoreError(
                f"{self._store / commit_file(self._group, shard)} has disappeared: re-run 'repa-pipe encode' to encode "
                "the shard again"
            )
        self._require_fitting(shard, commit)
        return commit

    def quarantined_of(self, shard: int) -> Sequence[Quarantined]:
        """Return the images of a shard that could not be encoded."""
        found = self._quarantined.get(shard)
        if found is None:
            found = self._quarantined[shard] = self[shard].quarantined
        return found

    def quarantined(self) -> list[Quarantined]:
        """Return the images that could not be encoded, in ascending order.

        In large groups, only records that list any are checked.
        """
        shards = sorted(self._shards)
        if len(shards) > KEPT:
            parts = [shards[start : start + PART] for start in range(0, len(shards), PART)]
            with ThreadPoolExecutor(READERS, thread_name_prefix="commits") as pool:
                shards = [shard for part in pool.map(self._that_list_some, parts) for shard in part]
        return [entry for shard in shards for entry in self.quarantined_of(shard)]

    def _that_list_some(self, shards: Sequence[int]) -> list[int]:
        """Return the shards whose record does not plainly list no images; it may be another, damaged or missing."""
        return [shard for shard in shards if _NONE not in _content(self._store / commit_file(self._group, shard))]


def _content(path: Path) -> bytes:
    """Return the contents of a small file, or nothing if it cannot be read."""
    try:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - Path.open takes twice as long
            return file.read()
    except OSError:
        return b""
