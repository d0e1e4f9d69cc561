"""Batched random reads of a committed store, at the speed of the disk.

The format is plain zarr; this reader knows its uncompressed sharded form by heart: shard indices are parsed once
and kept, and every sample is one `preadv` straight into the batch, from a pool of threads, in order of file and
offset. `preadv` releases the GIL.
"""

from __future__ import annotations

import json
import os
import struct
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import StoreError
from .checksum import crc32c_bytes
from .layout import ArraySpec, shard_file
from .manifest import Commit

READ_THREADS = 16
OPEN_FILES = 512  # well under the usual limit of 1,024 descriptors a process

Job = tuple[int, int, memoryview]  # file descriptor, offset in it, where the bytes go


@dataclass(frozen=True, slots=True)
class ArrayLayout:
    """What an array's zarr.json says, reduced to what reading needs."""

    path: Path
    spec: ArraySpec
    shape: tuple[int, ...]
    shard_size: int

    @property
    def dtype(self) -> np.dtype[Any]:
        """The numpy dtype of the array."""
        return np.dtype(self.spec.dtype)


def read_layout(path: Path) -> ArrayLayout:
    """Parse an array's zarr.json; StoreError when it is absent or not the uncompressed sharded form."""
    try:
        meta = json.loads((path / "zarr.json").read_bytes())
    except (OSError, ValueError) as error:
        raise StoreError(f"{path / 'zarr.json'} cannot be read ({error}): the store is damaged") from error
    shape = tuple(meta["shape"])
    codec = meta["codecs"][0]
    expected = {
        "name": "sharding_indexed",
        "inner": [1, *shape[1:]],
        "inner codecs": ["bytes"],
        "index": "end",
        "index codecs": ["bytes", "crc32c"],
    }
    configuration = codec.get("configuration", {})
    found = {
        "name": codec["name"],
        "inner": configuration.get("chunk_shape"),
        "inner codecs": [inner["name"] for inner in configuration.get("codecs", [])],
        "index": configuration.get("index_location", "end"),
        "index codecs": [inner["name"] for inner in configuration.get("index_codecs", [])],
    }
    if found != expected:
        raise StoreError(f"{path} is not laid out as docs/store-format.md says: found {found}, expected {expected}")
    spec = ArraySpec(name=path.name, sample_shape=shape[1:], dtype=meta["data_type"])
    return ArrayLayout(path, spec, shape, meta["chunk_grid"]["configuration"]["chunk_shape"][0])


class Descriptors:
    """Open files, the least recently used closed first, none while a read needs it."""

    def __init__(self, limit: int = OPEN_FILES) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._open: OrderedDict[Path, int] = OrderedDict()
        self._users: dict[Path, int] = {}

    @contextmanager
    def borrow(self, paths: Sequence[Path]) -> Iterator[list[int]]:
        """File descriptors of `paths`, open until the block ends."""
        with self._lock:
            borrowed: list[Path] = []
            try:
                for path in paths:
                    self._acquire(path)
                    borrowed.append(path)
                descriptors = [self._open[path] for path in paths]
            except BaseException:
                self._release(borrowed)
                raise
        try:
            yield descriptors
        finally:
            with self._lock:
                self._release(borrowed)

    def _acquire(self, path: Path) -> None:
        if path not in self._open:
            fd = os.open(path, os.O_RDONLY)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
            self._open[path] = fd
        self._open.move_to_end(path)
        self._users[path] = self._users.get(path, 0) + 1

    def _release(self, paths: Sequence[Path]) -> None:
        for path in paths:
            self._users[path] -= 1
        idle = [path for path in self._open if not self._users[path]]
        for path in idle[: max(0, len(self._open) - self._limit)]:
            os.close(self._open.pop(path))
            del self._users[path]

    def close(self) -> None:
        """Close every file."""
        with self._lock:
            for fd in self._open.values():
                os.close(fd)
            self._open.clear()
            self._users.clear()


class ArrayReader:
    """One array of a group: where each sample's bytes lie."""

    def __init__(self, layout: ArrayLayout) -> None:
        self.layout = layout
        self._offsets: dict[int, npt.NDArray[np.int64]] = {}

    def shard_path(self, shard: int) -> Path:
        """The shard's file."""
        return self.layout.path / shard_file(self.layout.spec, shard)

    def offsets(self, shard: int, fd: int, commit: Commit) -> npt.NDArray[np.int64]:
        """Byte offsets of a shard's samples, `[num_samples]`; parsed and checked once."""
        if shard not in self._offsets:
            self._offsets[shard] = self._parse_index(shard, fd, commit)
        return self._offsets[shard]

    def _parse_index(self, shard: int, fd: int, commit: Commit) -> npt.NDArray[np.int64]:
        path = self.shard_path(shard)
        expected = commit.files[f"{self.layout.spec.name}/{shard_file(self.layout.spec, shard)}"]["bytes"]
        size = os.fstat(fd).st_size
        if size != expected:
            raise StoreError(
                f"{path} has {size:,} bytes, its commit record says {expected:,}: "
                "run 'repa-pipe store verify --repair', then 'repa-pipe encode' again"
            )
        length = 16 * self.layout.shard_size + 4
        tail = os.pread(fd, length, size - length)
        if crc32c_bytes(tail[:-4]) != struct.unpack("<I", tail[-4:])[0]:
            raise StoreError(f"{path}: the shard index fails its checksum: run 'repa-pipe store verify --repair'")
        index = np.frombuffer(tail[:-4], dtype="<u8").reshape(-1, 2)[: commit.num_samples]
        if (index[:, 1] != self.layout.spec.sample_bytes).any():
            raise StoreError(f"{path}: the shard index lacks samples that its commit record has")
        return index[:, 0].astype(np.int64)


class BatchReader:
    """Reads samples of many arrays at once into given buffers. Safe to use from several threads."""

    def __init__(self, threads: int = READ_THREADS) -> None:
        self._threads = threads
        self._descriptors = Descriptors()
        self._pool: ThreadPoolExecutor | None = None
        self._pid = os.getpid()

    def read(
        self,
        requests: Sequence[tuple[ArrayReader, npt.NDArray[Any], dict[int, Commit]]],
        indices: npt.NDArray[np.int64],
    ) -> None:
        """Fill each request's buffer `[len(indices), *sample_shape]` with the samples at `indices`."""
        self._after_fork()
        wanted = [
            (reader, int(shard))
            for reader, _, _ in requests
            for shard in np.unique(indices // reader.layout.shard_size)
        ]
        with self._descriptors.borrow([reader.shard_path(shard) for reader, shard in wanted]) as descriptors:
            opened = dict(zip(((id(reader), shard) for reader, shard in wanted), descriptors, strict=True))
            jobs = [job for request in requests for job in self._jobs(*request, indices, opened)]
            self._run(jobs)

    def _jobs(
        self,
        reader: ArrayReader,
        buffer: npt.NDArray[Any],
        commits: dict[int, Commit],
        indices: npt.NDArray[np.int64],
        opened: dict[tuple[int, int], int],
    ) -> Iterator[Job]:
        shards, rows = np.divmod(indices, reader.layout.shard_size)
        size = reader.layout.spec.sample_bytes
        target = buffer.reshape(-1).view(np.uint8).data
        for shard in np.unique(shards).tolist():
            fd = opened[id(reader), shard]
            offsets = reader.offsets(shard, fd, commits[shard])
            places = np.flatnonzero(shards == shard)
            places = places[np.argsort(rows[places], kind="stable")]
            for place, offset in zip(places.tolist(), offsets[rows[places]].tolist(), strict=True):
                yield fd, offset, target[place * size : (place + 1) * size]

    def _run(self, jobs: list[Job]) -> None:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="store-read")
        step = max(1, len(jobs) // (4 * self._threads))
        for _ in self._pool.map(_read_jobs, [jobs[i : i + step] for i in range(0, len(jobs), step)]):
            pass

    def _after_fork(self) -> None:
        # threads do not survive a fork; descriptors do, and preadv has no shared position to spoil
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._pool = None

    def close(self) -> None:
        """Stop the threads and close the files."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None
        self._descriptors.close()


def _read_jobs(jobs: list[Job]) -> None:
    for fd, offset, target in jobs:
        got = os.preadv(fd, [target], offset)
        while got < len(target):
            more = os.preadv(fd, [target[got:]], offset + got)
            if more == 0:
                raise StoreError("a shard file became shorter while it was read: run 'repa-pipe store verify'")
            got += more
