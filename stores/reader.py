"""Batched random reads of a committed store, at the speed of the disk.

The format is plain zarr. This reader is specialized for its uncompressed sharded form: shard indices are parsed once
and kept, and every sample is one `preadv` directly into the batch, issued by a thread pool in order of file and offset.
`preadv` and the checksum of the sample, computed right after it, release the GIL.

Reads use the page cache, or bypass it (O_DIRECT) for shards that do not fit into memory. For those, the cache would
only add a copy and evict pages that are still needed.
"""

from __future__ import annotations

import logging
import os
import resource
import struct
import sys
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import StoreError
from .checksum import crc32c_bytes
from .layout import shard_file
from .manifest import Commit
from .read_checks import ArrayChecks
from .zarr_metadata import ArrayLayout

READ_THREADS = 32  # reads in flight; with 16, a fast disk loses a tenth of its throughput
PARTS = 4  # of a batch, per thread
SPARE_FILES = 512  # file descriptors left for the rest of the process, or 5/8 of a limit below 820
ALIGNMENT = 4096  # bytes; O_DIRECT requires multiples of it for offsets, sizes and buffers

UNCHECKED = -1  # in place of a checksum, for a sample that is not compared in this read
MISMATCH = "does not match its checksum"
REPAIR = "run 'repa-pipe store repair STORE'"

logger = logging.getLogger(__name__)

File = tuple[str, bool]  # path, whether to bypass the page cache
Job = tuple[int, int, memoryview, int]  # file descriptor, offset in the file, destination, checksum or UNCHECKED


def _allowed_files() -> int:
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if allowed == resource.RLIM_INFINITY:
        return 1 << 20
    return allowed - min(SPARE_FILES, allowed * 5 // 8)


class FileDescriptorCache:
    """An LRU cache of open files. A file is never closed while a read uses it.

    The cache is as large as `ulimit -n` permits. The usual limit of 1,024 is smaller than the number of shards of
    ImageNet, so a batch then reopens most of its files, at 15 microseconds each. The command line raises it.

    Attributes:
        at_once: files to borrow at a time, so that two threads stay within the limit.
    """

    def __init__(self, limit: int | None = None) -> None:
        self._limit = _allowed_files() if limit is None else limit
        self.at_once = max(1, self._limit // 2)
        self._lock = threading.Lock()
        self._open: OrderedDict[File, int] = OrderedDict()
        self._users: dict[File, int] = {}

    @contextmanager
    def borrow(self, paths: Sequence[File]) -> Iterator[list[int]]:
        """Yield file descriptors of `paths`, which stay open until the block ends."""
        with self._lock:
            borrowed: list[File] = []
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

    def _acquire(self, file: File) -> None:
        if file not in self._open:
            path, direct = file
            try:
                fd = os.open(path, os.O_RDONLY | (os.O_DIRECT if direct else 0))
            except FileNotFoundError as error:
                raise StoreError(f"{path} is missing: {REPAIR}") from error
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
            self._open[file] = fd
        self._open.move_to_end(file)
        self._users[file] = self._users.get(file, 0) + 1

    def _release(self, paths: Sequence[File]) -> None:
        for path in paths:
            self._users[path] -= 1
        surplus = len(self._open) - self._limit
        if surplus <= 0:
            return
        for path in [path for path in self._open if not self._users[path]][:surplus]:
            os.close(self._open.pop(path))
            del self._users[path]

    def close(self) -> None:
        """Close every file."""
        with self._lock:
            for fd in self._open.values():
                os.close(fd)
            self._open.clear()
            self._users.clear()


class ShardIndex:
    """The position of each sample's bytes in the shard files of one array."""

    def __init__(self, layout: ArrayLayout) -> None:
        self.layout = layout
        self._offsets: dict[int, npt.NDArray[np.int64]] = {}
        self._usual = np.arange(layout.shard_size, dtype=np.int64) * layout.spec.sample_bytes  # without gaps
        self._aligned: dict[int, bool] = {}
        self._files: dict[int, str] = {}

    @property
    def index_bytes(self) -> int:
        """Bytes of the index at the end of every shard file, including its checksum."""
        return 16 * self.layout.shard_size + 4

    def shard_path(self, shard: int) -> Path:
        """Return the path of a shard's file."""
        return self.layout.path / shard_file(self.layout.spec, shard)

    def shard_name(self, shard: int) -> str:
        """Return the path of a shard's file as a cached string, since a batch needs hundreds of them."""
        if shard not in self._files:
            self._files[shard] = str(self.shard_path(shard))
        return self._files[shard]

    def file_bytes(self, commit: Commit) -> int:
        """Return the size of a shard's file according to its commit record."""
        return commit.files[f"{self.layout.spec.name}/{shard_file(self.layout.spec, commit.shard)}"]["bytes"]

    def offsets(self, shard: int, commits: Mapping[int, Commit]) -> npt.NDArray[np.int64]:
        """Return the byte offsets of a shard's samples, `[num_samples]`, parsed and checked on first use."""
        if shard not in self._offsets:
            found = self._parse_index(shard, commits[shard])
            usual = self._usual[: len(found)]  # one array for all shards: 8 bytes per sample of the store are too many
            self._offsets[shard] = usual if np.array_equal(found, usual) else found
        return self._offsets[shard]

    def is_aligned(self, shard: int) -> bool:
        """Return whether O_DIRECT can read the samples of a shard. Requires a previous call of `offsets`."""
        if shard not in self._aligned:
            self._aligned[shard] = not int(np.bitwise_or.reduce(self._offsets[shard])) % ALIGNMENT
        return self._aligned[shard]

    def _parse_index(self, shard: int, commit: Commit) -> npt.NDArray[np.int64]:
        path = self.shard_path(shard)
        expected, length = self.file_bytes(commit), self.index_bytes
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                tail = os.pread(file.fileno(), length, max(0, size - length))
        except FileNotFoundError as error:
            raise StoreError(f"{path} is missing, although its shard is committed: {REPAIR}") from error
        if size != expected:
            raise StoreError(f"{path} has {size:,} bytes, expected {expected:,} (commit record): {REPAIR}")
        if crc32c_bytes(tail[:-4]) != struct.unpack("<I", tail[-4:])[0]:
            raise StoreError(f"{path}: the shard index fails its checksum: {REPAIR}")
        index = np.frombuffer(tail[:-4], dtype="<u8").reshape(-1, 2)[: commit.num_samples]
        if (index[:, 1] != self.layout.spec.sample_bytes).any():
            raise StoreError(f"{path}: the shard index lacks samples that the commit record lists: {REPAIR}")
        return index[:, 0].astype(np.int64)


@dataclass(frozen=True, slots=True)
class ReadRequest:
    """The samples of one array that a batch needs."""

    array: ShardIndex
    buffer: npt.NDArray[Any]  # of the batch: [B, *sample_shape]
    commits: Mapping[int, Commit]
    places: npt.NDArray[np.bool_]  # [B]: the samples of the batch to read from this array
    checks: ArrayChecks | None = None  # None: samples are not compared with their checksums


@dataclass(frozen=True, slots=True)
class Damage:
    """A sample of a request that is damaged, and stays so when it is read again."""

    request: ReadRequest
    place: int  # in the batch
    what: str


@dataclass(frozen=True, slots=True)
class ShardRead:
    """The samples of one shard file that a batch needs."""

    request: ReadRequest
    file: File
    places: list[int]  # in the batch
    offsets: list[int]  # in the file, ascending
    expected: list[int]  # checksum of each sample, or UNCHECKED

    def jobs(self, fd: int) -> Iterator[Job]:
        """Yield one read per sample."""
        buffer = self.request.buffer
        target = buffer.reshape(-1).view(np.uint8).data
        size = len(target) // len(buffer)
        for place, offset, expected in zip(self.places, self.offsets, self.expected, strict=True):
            yield fd, offset, target[place * size : (place + 1) * size], expected


class BatchReader:
    """Reads samples of several arrays at once into given buffers. Thread-safe."""

    def __init__(self) -> None:
        self._descriptors = FileDescriptorCache()
        self._pool: ThreadPoolExecutor | None = None
        self._pid = os.getpid()

    def read(
        self, requests: Sequence[ReadRequest], indices: npt.NDArray[np.int64], direct: bool, cached_shards: int
    ) -> list[Damage]:
        """Fill the places of each request's buffer `[len(indices), *sample_shape]` with the samples at `indices`.

        Args:
            requests: one per array and view.
            indices: samples of the batch, `[B]`.
            direct: bypass the page cache where samples and buffers have the required alignment.
            cached_shards: shards, from the first on, that `direct` does not apply to.

        Returns:
            Samples that cannot be read, or do not match their checksums.
        """
        self._after_fork()
        # large samples first: whatever arrives last, the batch waits for
        requests = sorted(requests, key=lambda request: -request.array.layout.spec.sample_bytes)
        checked = [expected_checksums(request, indices) for request in requests]
        direct_from = cached_shards if direct else sys.maxsize
        reads = [
            read
            for request, expected in zip(requests, checked, strict=True)
            for read in self._shard_reads(request, indices, expected, direct_from)
        ]
        damage = []
        for start in range(0, len(reads), self._descriptors.at_once):
            damage += self._read_shards(reads[start : start + self._descriptors.at_once])
        for request, expected in zip(requests, checked, strict=True):
            if request.checks is not None and (compared := expected != UNCHECKED).any():
                compared[[each.place for each in damage if each.request is request]] = False
                request.checks.passed(indices[compared])
        return damage

    def _read_shards(self, reads: Sequence[ShardRead]) -> list[Damage]:
        with self._descriptors.borrow([read.file for read in reads]) as descriptors:
            jobs = [job for read, fd in zip(reads, descriptors, strict=True) for job in read.jobs(fd)]
            failed = self._run(jobs)
            return _read_failed_again(reads, jobs, failed) if failed else []

    def _shard_reads(
        self, request: ReadRequest, indices: npt.NDArray[np.int64], expected: npt.NDArray[np.int64], direct_from: int
    ) -> Iterator[ShardRead]:
        array, commits, buffer = request.array, request.commits, request.buffer
        aligned = not (buffer.ctypes.data % ALIGNMENT or array.layout.spec.sample_bytes % ALIGNMENT)
        places = np.flatnonzero(request.places)
        places = places[np.argsort(indices[places], kind="stable")]
        shards, rows = np.divmod(indices[places], array.layout.shard_size)
        starts = np.flatnonzero(np.diff(shards, prepend=-1))
        every_place, every_expected = places.tolist(), expected[places].tolist()
        for start, stop in pairwise([*starts.tolist(), len(places)]):
            shard = int(shards[start])
            offsets = array.offsets(shard, commits)[rows[start:stop]]
            file = array.shard_name(shard), aligned and shard >= direct_from and array.is_aligned(shard)
            yield ShardRead(request, file, every_place[start:stop], offsets.tolist(), every_expected[start:stop])

    def _run(self, jobs: list[Job]) -> list[int]:
        """Run all jobs; return the positions of those that failed."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(READ_THREADS, thread_name_prefix="store-read")
        ends = np.cumsum([len(target) for _, _, target, _ in jobs])
        parts = ends * (PARTS * READ_THREADS) // (ends[-1] + 1)  # small, so that all threads finish together
        starts = [0, *(np.flatnonzero(np.diff(parts)) + 1).tolist()]
        failed = self._pool.map(_read_jobs, [jobs[start:stop] for start, stop in pairwise([*starts, len(jobs)])])
        return [start + position for start, part in zip(starts, failed, strict=True) for position in part]

    def _after_fork(self) -> None:
        # Threads do not survive a fork. File descriptors do, and preadv does not use their shared position.
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._pool = None

    def close(self) -> None:
        """Stop the threads and close the files."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None
        self._descriptors.close()


def expected_checksums(request: ReadRequest, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return what to compare the samples of a batch with in this read, `[B]`: a checksum, or UNCHECKED.

    Raises:
        StoreError: the stored checksums of a shard are damaged.
    """
    expected = np.full(len(indices), UNCHECKED, dtype=np.int64)
    if request.checks is not None:
        places = np.flatnonzero(request.places & request.checks.due(indices))
        if len(places):
            expected[places] = request.checks.expected(indices[places])
    return expected


def _read_jobs(jobs: list[Job]) -> list[int]:
    """Read samples; return the positions of those that cannot be read or do not match their checksums."""
    return [position for position, job in enumerate(jobs) if _problem_of(job) is not None]


def _problem_of(job: Job) -> str | None:
    """Read a sample. Return what is wrong with it; None if nothing is."""
    fd, offset, target, expected = job
    try:
        got = os.preadv(fd, [target], offset)
        while got < len(target):
            more = os.preadv(fd, [target[got:]], offset + got)
            if more == 0:
                return "is cut off: its file was truncated"
            got += more
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if expected != UNCHECKED and crc32c_bytes(target) != expected:
        return MISMATCH
    return None


def _read_failed_again(reads: Sequence[ShardRead], jobs: Sequence[Job], failed: Sequence[int]) -> list[Damage]:
    """Read the samples of failed jobs again, from the disk; return those that fail again."""
    origins = [(read, place) for read in reads for place in read.places]
    damage = []
    for position in failed:
        (read, place), job = origins[position], jobs[position]
        fd, offset, target, _ = job
        os.posix_fadvise(fd, offset, len(target), os.POSIX_FADV_DONTNEED)  # the page cache may be what is damaged
        if (what := _problem_of(job)) is not None:
            damage.append(Damage(read.request, place, what))
        else:
            logger.warning(
                "%s: a sample at byte %s was wrong when it was read, and right when it was read again: check the "
                "memory and the disk of this machine",
                read.file[0],
                f"{offset:,}",
            )
    return damage
