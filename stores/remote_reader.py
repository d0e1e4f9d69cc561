"""Batched random reads of a store behind a URL.

The thread that fetches a sample also compares it with its checksum, and writes it into the batch and into the cache,
while other requests are in flight.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..errors import StoreError
from .cached_samples import CACHED_SAMPLES_FILE, CachedSampleMap, create_sparse_file, write_sample
from .checksum import crc32c_bytes
from .manifest import Commit
from .mirror import Mirror
from .reader import MISMATCH, UNCHECKED, BatchReader, Damage, ReadRequest, ShardIndex, expected_checksums
from .remote import Range

logger = logging.getLogger(__name__)


class SampleFetch(NamedTuple):
    """A sample to fetch."""

    request: ReadRequest
    place: int  # in the batch
    row: int
    part: Range
    target: npt.NDArray[np.uint8]  # its bytes in the buffer of the batch
    expected: int  # checksum, or UNCHECKED


class RemoteReader:
    """A `BatchReader` for a mirrored store: samples that are not in the folder are fetched."""

    def __init__(self, mirror: Mirror) -> None:
        self._mirror, self._local = mirror, BatchReader()
        self._cached: dict[Path, CachedSampleMap] = {}
        self._lock = threading.Lock()

    def read(
        self, requests: Sequence[ReadRequest], indices: npt.NDArray[np.int64], direct: bool, cached_shards: int
    ) -> list[Damage]:
        """Fill each request's buffer with the samples at `indices`. See `BatchReader.read`.

        Every sample is compared with its checksum before it is cached. Damaged ones in the cache are fetched again.
        """
        self._prepare_shards(requests, indices)
        if self._mirror.cache is None:
            return self._fetch(requests, indices)
        cached = [each.places & self._cached_samples(each.array).samples[indices] for each in requests]
        missing = [replace(each, places=each.places & ~here) for each, here in zip(requests, cached, strict=True)]
        present = [replace(each, places=here) for each, here in zip(requests, cached, strict=True)]
        return self._fetch(missing, indices) or [
            each
            for local in self._local.read(present, indices, direct, cached_shards)
            for each in self._replace(local, indices)
        ]

    def close(self) -> None:
        """Make cached samples durable, stop the threads, and close the files."""
        for cached in self._cached.values():
            cached.flush()
        self._local.close()

    def _prepare_shards(self, requests: Sequence[ReadRequest], indices: npt.NDArray[np.int64]) -> None:
        """Create a sparse file with the index at its end for every shard that is used for the first time."""
        wanted: dict[Path, tuple[int, Range]] = {}
        for request in requests:
            array = request.array
            for shard in np.unique(indices[request.places] // array.layout.shard_size).tolist():
                if not self._has_index(array, shard, request.commits):
                    size, length = array.file_bytes(request.commits[shard]), array.index_bytes
                    path = array.shard_path(shard)
                    wanted[path] = size, (self._key(path), max(0, size - length), min(size, length))
        tails = self._mirror.files.get_ranges([part for _, part in wanted.values()]) if wanted else []
        for (path, (size, (_, start, _))), tail in zip(wanted.items(), tails, strict=True):
            create_sparse_file(path, size, start, tail)

    def _has_index(self, array: ShardIndex, shard: int, commits: Mapping[int, Commit]) -> bool:
        """Return whether the folder has a shard's file with an intact index."""
        if not array.shard_path(shard).exists():
            if self._mirror.cache is not None:  # the file was deleted, or never existed
                size = array.layout.shard_size
                self._cached_samples(array).samples[shard * size : (shard + 1) * size] = False
            return False
        try:
            array.offsets(shard, commits)
        except StoreError as error:
            logger.warning("%s: fetching the index of the shard again", error)
            return False
        return True

    def _fetch(self, requests: Sequence[ReadRequest], indices: npt.NDArray[np.int64]) -> list[Damage]:
        """Fetch samples into the buffers and the cache; return those that are damaged even when fetched twice."""
        plans = [self._plan(request, indices) for request in requests]
        wrong = self._run(self._run([fetch for plan in plans for fetch in plan]))
        for request, plan in zip(requests, plans, strict=True):
            damaged = {fetch.place for fetch in wrong if fetch.request is request}
            self._record(request, [fetch for fetch in plan if fetch.place not in damaged])
            _copy_repeated(request, indices)
        return [Damage(fetch.request, fetch.place, MISMATCH) for fetch in wrong]

    def _plan(self, request: ReadRequest, indices: npt.NDArray[np.int64]) -> list[SampleFetch]:
        """Return what to fetch for a request: every sample once, even if the batch repeats it."""
        array, places = request.array, np.flatnonzero(request.places)
        if not len(places):
            return []
        rows, first = np.unique(indices[places], return_index=True)
        places = places[first]
        if self._mirror.cache is None or request.checks is None:
            expected = expected_checksums(request, indices)[places]
        else:
            expected = request.checks.expected(rows).astype(np.int64)
        target = request.buffer.reshape(len(indices), -1).view(np.uint8)
        size = array.layout.spec.sample_bytes
        shards, samples = np.divmod(rows, array.layout.shard_size)
        fetches = []
        for each in zip(
            places.tolist(), rows.tolist(), shards.tolist(), samples.tolist(), expected.tolist(), strict=True
        ):
            place, row, shard, sample, checksum = each
            start = int(array.offsets(shard, request.commits)[sample])
            part = self._key(array.shard_path(shard)), start, size
            fetches.append(SampleFetch(request, place, row, part, target[place], checksum))
        return fetches

    def _run(self, fetches: list[SampleFetch]) -> list[SampleFetch]:
        """Fetch samples; return those that do not match their checksums."""
        wrong = []
        folder = None if self._mirror.cache is None else self._mirror.folder

        def receive(position: int, data: memoryview) -> None:
            fetch = fetches[position]
            fetch.target[:] = np.frombuffer(data, np.uint8)  # unlike a memoryview, numpy releases the GIL
            if fetch.expected != UNCHECKED and crc32c_bytes(fetch.target.data) != fetch.expected:
                wrong.append(fetch)
            elif folder is not None:
                write_sample(folder / fetch.part[0], fetch.part[1], fetch.target)

        self._mirror.files.read_ranges([fetch.part for fetch in fetches], receive)
        return wrong

    def _record(self, request: ReadRequest, fetches: Sequence[SampleFetch]) -> None:
        """List samples that were fetched as cached, or, without a cache, as compared.

        The copy in the cache is compared when it is first read: the disk may damage what the server has sent.
        """
        if self._mirror.cache is not None:
            rows = np.array([fetch.row for fetch in fetches], dtype=np.int64)
            files = {self._mirror.folder / fetch.part[0] for fetch in fetches}
            self._cached_samples(request.array).add(rows, files)
        elif request.checks is not None:
            compared = [fetch.row for fetch in fetches if fetch.expected != UNCHECKED]
            request.checks.passed(np.array(compared, dtype=np.int64))

    def _replace(self, damage: Damage, indices: npt.NDArray[np.int64]) -> list[Damage]:
        """Fetch a damaged sample of the cache again, into the buffer and the cache; return what is still damaged."""
        request, row = damage.request, int(indices[damage.place])
        path = request.array.shard_path(row // request.array.layout.shard_size)
        logger.warning("%s: cached sample %d %s: fetching it again", path, row, damage.what)
        return self._fetch([replace(request, places=np.arange(len(indices)) == damage.place)], indices)

    def _cached_samples(self, array: ShardIndex) -> CachedSampleMap:
        with self._lock:
            path = array.layout.path / CACHED_SAMPLES_FILE
            if path not in self._cached:
                self._cached[path] = CachedSampleMap(path, array.layout.shape[0])
            return self._cached[path]

    def _key(self, path: Path) -> str:
        return str(path.relative_to(self._mirror.folder))


def _copy_repeated(request: ReadRequest, indices: npt.NDArray[np.int64]) -> None:
    """Copy the samples that a batch repeats to their other places."""
    places = np.flatnonzero(request.places)
    _, first, inverse = np.unique(indices[places], return_index=True, return_inverse=True)
    origins = places[first][inverse]
    repeated = origins != places
    request.buffer[places[repeated]] = request.buffer[origins[repeated]]
