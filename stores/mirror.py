"""A store behind a URL, mirrored by a local folder with the same layout.

Small files (metadata, commit records, labels, shard indices) are fetched on first use. Shard files are sparse: they
have their true size and index. With a cache folder, samples are stored in them, and later epochs read them at the speed
of the local disk.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
import threading
import time
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..converter import parse_json, read_json
from ..errors import StoreError
from .checksum import crc32c_rows
from .files import atomic_write_bytes, confined, remove_abandoned, temporary_path
from .layout import CRC32C, ROOT_ATTRIBUTE, commit_file
from .manifest import Commit
from .metadata_writer import copied_metadata
from .reader import MISMATCH, BatchReader, Damage, ReadRequest, ShardIndex
from .remote import Range, RemoteFiles
from .remote_options import endpoint_hint
from .zarr_metadata import METADATA_FILE

logger = logging.getLogger(__name__)

FLUSH_INTERVAL_S = 60.0
CACHED_SAMPLES_FILE = "present"  # next to an array's zarr.json in the cache: one byte per sample, 1 if it is cached


class Mirror:
    """The local folder, and the methods that fetch files into it.

    Args:
        url: the store's URL.
        cache: folder that keeps everything that was read, for this and later processes. None: only metadata is kept,
            until the store is closed.

    Raises:
        StoreError: there is no store at `url`, it cannot be reached, or `cache` holds a previous store of that URL.
    """

    def __init__(self, url: str, cache: Path | None) -> None:
        self.files = RemoteFiles(url)
        self.cache = cache
        self._temporary = _temporary_folder() if cache is None else None
        base = Path(self._temporary.name) if self._temporary else Path(str(cache)).expanduser()
        self.folder = base / sha256(self.files.url.encode()).hexdigest()[:16]
        try:
            self._write_metadata()
        except BaseException:
            self.close()
            raise

    def fetch(self, names: Sequence[str], again: bool = False) -> None:
        """Fetch these files unless they are in the folder, or `again`; skip those that do not exist at the URL."""
        missing = [name for name in names if again or not (self.folder / name).exists()]
        for name, data in self.files.get(missing).items():
            self._write(name, data)

    def fetch_commits(self, group: str, total: int) -> None:
        """Fetch the commit records of a group with `total` shards."""
        self.fetch([commit_file(group, shard) for shard in range(total)])

    def fetch_shard(self, shard: int) -> None:
        """Fetch the current metadata of all groups, and their commit records of a shard."""
        self._write_metadata()
        groups = [path.parent.parent for path in self.folder.glob(f"*/*/{CRC32C}/zarr.json")]
        self.fetch([commit_file(str(group.relative_to(self.folder)), shard) for group in groups])

    def download(self, name: str) -> int:
        """Return a descriptor of a copy of a file, which takes disk space until it is closed."""
        with tempfile.TemporaryFile(dir=self.folder) as file:
            self.files.download(name, file.fileno())
            return os.dup(file.fileno())

    def close(self) -> None:
        """Close connections, and delete the folder unless it is a cache."""
        self.files.close()
        if self._temporary is not None:
            self._temporary.cleanup()

    def _write_metadata(self) -> None:
        """Fetch the root's zarr.json, and write those of all groups and arrays from its consolidated metadata."""
        url = self.files.url
        data = self.files.get([METADATA_FILE]).get(METADATA_FILE)
        if data is None:
            raise StoreError(f"no store at {url}: {url}/zarr.json does not exist{endpoint_hint(url)}")
        root = parse_json(data, f"{url}/zarr.json", StoreError)
        copied = copied_metadata(root, f"{url}/zarr.json")
        found = {METADATA_FILE: root} | {f"{name}/{METADATA_FILE}": meta for name, meta in copied.items()}
        for name, value in found.items():
            path = self.folder / name
            if path.exists() and not _same_store(read_json(path, StoreError), value):
                raise StoreError(f"{self.folder} holds samples of a previous store at {url}: delete that folder")
        for name, value in found.items():
            self._write(name, json.dumps(value).encode())

    def _write(self, name: str, data: bytes) -> None:
        atomic_write_bytes(confined(self.folder, name), data, durable=self.cache is not None)


def _temporary_folder() -> tempfile.TemporaryDirectory[str]:
    """Create a temporary folder, and delete those that killed processes left behind."""
    name = Path(tempfile.gettempdir()) / "repa-pipe"
    remove_abandoned(name.parent, name.name)
    return tempfile.TemporaryDirectory(prefix=temporary_path(name).name)


def _same_store(cached: dict[str, Any], fetched: dict[str, Any]) -> bool:
    """Return whether two versions of a zarr.json describe the same images, weights and shapes."""
    own, other = _attributes(cached), _attributes(fetched)
    if ROOT_ATTRIBUTE in own:
        return bool(own[ROOT_ATTRIBUTE] == other.get(ROOT_ATTRIBUTE))
    shapes = [(meta.get("shape"), meta.get("codecs")) for meta in (cached, fetched)]
    return bool(own.get("fingerprint") == other.get("fingerprint")) and shapes[0] == shapes[1]


def _attributes(meta: dict[str, Any]) -> dict[str, Any]:
    found = meta.get("attributes")
    return found if isinstance(found, dict) else {}


class RemoteReader:
    """A `BatchReader` for a mirrored store: samples that are not in the folder are fetched, one request per sample."""

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
            return [each for request in requests for each in self._fetch_batch(request, indices)]
        damage = [each for request in requests for each in self._cache(request, indices)]
        return damage or [
            each
            for local in self._local.read(requests, indices, direct, cached_shards)
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
                if not self._has_index(array, shard, request.commits[shard]):
                    size, length = array.file_bytes(request.commits[shard]), array.index_bytes
                    path = array.shard_path(shard)
                    wanted[path] = size, (self._key(path), max(0, size - length), min(size, length))
        tails = self._mirror.files.get_ranges([part for _, part in wanted.values()]) if wanted else []
        for (path, (size, (_, start, _))), tail in zip(wanted.items(), tails, strict=True):
            _write_index(path, size, start, tail)

    def _has_index(self, array: ShardIndex, shard: int, commit: Commit) -> bool:
        """Return whether the folder has a shard's file with an intact index."""
        if not array.shard_path(shard).exists():
            if self._mirror.cache is not None:  # the file was deleted, or never existed
                size = array.layout.shard_size
                self._cached_samples(array).samples[shard * size : (shard + 1) * size] = False
            return False
        try:
            array.offsets(shard, commit)
        except StoreError as error:
            logger.warning("%s: fetching the index of the shard again", error)
            return False
        return True

    def _fetch_batch(self, request: ReadRequest, indices: npt.NDArray[np.int64]) -> list[Damage]:
        """Fetch the samples of a request into its buffer, and compare those that are due."""
        places = np.flatnonzero(request.places)
        rows = indices[places]
        due = np.zeros(len(rows), dtype=bool) if request.checks is None else request.checks.due(rows)
        block, wrong = self._fetch(request, rows, due)
        request.buffer[places] = block
        if request.checks is not None:
            due[wrong] = False
            request.checks.passed(rows[due])
        return [Damage(request, place, MISMATCH) for place in places[wrong].tolist()]

    def _fetch(
        self, request: ReadRequest, rows: npt.NDArray[np.int64], due: npt.NDArray[np.bool_]
    ) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
        """Fetch the samples `rows` and compare those that are `due`, `[n]`, with their checksums.

        Returns:
            The samples, `[n, *sample_shape]`, and the positions of those that do not match even when fetched twice.
        """
        block, compared = self._fetch_unchecked(request, rows), np.flatnonzero(due)
        if request.checks is None or not len(compared):
            return block, compared[:0]
        expected = request.checks.expected(rows[compared])
        wrong = compared[crc32c_rows(block[compared]) != expected]
        if len(wrong):
            block[wrong] = self._fetch_unchecked(request, rows[wrong])
            wrong = compared[crc32c_rows(block[compared]) != expected]
        return block, wrong

    def _fetch_unchecked(self, request: ReadRequest, rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        array, spec = request.array, request.array.layout.spec
        shards, places = np.divmod(rows, array.layout.shard_size)
        ranges = [
            (
                self._key(array.shard_path(shard)),
                int(array.offsets(shard, request.commits[shard])[place]),
                spec.sample_bytes,
            )
            for shard, place in zip(shards.tolist(), places.tolist(), strict=True)
        ]
        block = np.empty((len(rows), *spec.sample_shape), array.layout.dtype)
        target = block.reshape(len(rows), -1).view(np.uint8)
        for row, part in enumerate(self._mirror.files.get_ranges(ranges)):
            target[row] = part
        return block

    def _cache(self, request: ReadRequest, indices: npt.NDArray[np.int64]) -> list[Damage]:
        """Fetch the samples that are not cached, and write them into the sparse files, unless one is damaged."""
        cached = self._cached_samples(request.array)
        rows = np.unique(indices[request.places & ~cached.samples[indices]])
        if not len(rows):
            return []
        block, wrong = self._fetch(request, rows, np.ones(len(rows), dtype=bool))
        if len(wrong):
            places = np.flatnonzero(request.places & np.isin(indices, rows[wrong]))
            return [Damage(request, place, MISMATCH) for place in places.tolist()]
        self._write_samples(request, rows, block)
        return []

    def _write_samples(self, request: ReadRequest, rows: npt.NDArray[np.int64], block: npt.NDArray[Any]) -> None:
        """Write the samples `rows` into the sparse files, and list them as cached."""
        array, size = request.array, request.array.layout.shard_size
        data = block.reshape(len(rows), -1).view(np.uint8)
        shards = np.unique(rows // size).tolist()
        for shard in shards:
            offsets = array.offsets(shard, request.commits[shard])
            with array.shard_path(shard).open("r+b", buffering=0) as file:
                for place in np.flatnonzero(rows // size == shard).tolist():
                    os.pwrite(file.fileno(), data[place].data, int(offsets[rows[place] % size]))
        self._cached_samples(array).add(rows, [array.shard_path(shard) for shard in shards])

    def _replace(self, damage: Damage, indices: npt.NDArray[np.int64]) -> list[Damage]:
        """Fetch a damaged sample of the cache again, into the buffer and the cache; return what is still damaged."""
        request, rows = damage.request, indices[damage.place : damage.place + 1]
        path = request.array.shard_path(int(rows[0]) // request.array.layout.shard_size)
        logger.warning("%s: cached sample %d %s: fetching it again", path, rows[0], damage.what)
        block, wrong = self._fetch(request, rows, np.ones(1, dtype=bool))
        if len(wrong):
            return [Damage(request, damage.place, MISMATCH)]
        self._write_samples(request, rows, block)
        request.buffer[damage.place] = block[0]
        return []

    def _cached_samples(self, array: ShardIndex) -> CachedSampleMap:
        with self._lock:
            path = array.layout.path / CACHED_SAMPLES_FILE
            if path not in self._cached:
                self._cached[path] = CachedSampleMap(path, array.layout.shape[0])
            return self._cached[path]

    def _key(self, path: Path) -> str:
        return str(path.relative_to(self._mirror.folder))


def _write_index(path: Path, size: int, start: int, tail: memoryview) -> None:
    """Create the sparse file of a shard, or correct the size and the index of an existing one, which holds samples."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path)
    with temporary.open("wb") as file:
        file.truncate(size)
        os.pwrite(file.fileno(), tail, start)
    try:
        os.link(temporary, path)  # unlike a rename, never replaces a file that already holds samples
    except FileExistsError:
        with path.open("r+b") as file:
            file.truncate(size)
            os.pwrite(file.fileno(), tail, start)
    finally:
        temporary.unlink()


class CachedSampleMap:
    """The set of cached samples of an array. Its file lists only samples that would survive a power failure.

    Attributes:
        samples: whether each sample is cached, `[num_samples]`.
    """

    def __init__(self, path: Path, num_samples: int) -> None:
        if not path.exists():
            atomic_write_bytes(path, bytes(num_samples))
        self._file = np.memmap(path, np.bool_, "r+", shape=(num_samples,))
        self.samples: npt.NDArray[np.bool_] = np.array(self._file)
        self._unflushed: list[npt.NDArray[np.int64]] = []
        self._written: set[Path] = set()
        self._flushed_at = time.monotonic()
        self._lock = threading.Lock()

    def add(self, rows: npt.NDArray[np.int64], files: Sequence[Path]) -> None:
        """Record that samples were written into these files."""
        with self._lock:
            self.samples[rows] = True
            self._unflushed.append(rows)
            self._written.update(files)
            due = time.monotonic() - self._flushed_at > FLUSH_INTERVAL_S
        if due:
            self.flush()

    def flush(self) -> None:
        """Sync the samples that were added, then list them in the file."""
        with self._lock:
            for path in self._written:
                fd = os.open(path, os.O_RDONLY)
                try:
                    os.fdatasync(fd)
                finally:
                    os.close(fd)
            for rows in self._unflushed:
                self._file[rows] = True
            self._file.flush()
            self._unflushed, self._written, self._flushed_at = [], set(), time.monotonic()
