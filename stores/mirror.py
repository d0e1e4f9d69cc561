"""A store behind a URL, mirrored by a local folder with the same layout.

Small files (metadata, commit records, labels, shard indices) are fetched on first use. Shard files are sparse: they
have their true size and index. With a cache folder, samples are stored in them, and later epochs read them at the speed
of the local disk.
"""

from __future__ import annotations

import json
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

from ..errors import StoreError
from .files import atomic_write_bytes, remove_abandoned, temporary_path
from .layout import CRC32C, ROOT_ATTRIBUTE, commit_file
from .reader import BatchReader, ReadRequest, ShardIndex
from .remote import Range, RemoteFiles

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

    def fetch(self, names: Sequence[str]) -> None:
        """Fetch these files unless they are in the folder; skip those that do not exist at the URL."""
        missing = [name for name in names if not (self.folder / name).exists()]
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

    def close(self) -> None:
        """Close connections, and delete the folder unless it is a cache."""
        self.files.close()
        if self._temporary is not None:
            self._temporary.cleanup()

    def _write_metadata(self) -> None:
        """Fetch the root's zarr.json, and write those of all groups and arrays from its consolidated metadata."""
        url = self.files.url
        root = self.files.get(["zarr.json"]).get("zarr.json")
        if root is None:
            raise StoreError(f"no store at {url}: {url}/zarr.json does not exist")
        try:
            meta = json.loads(root)
            inner = meta["consolidated_metadata"]["metadata"]
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{url}/zarr.json does not describe a store ({error!r} is missing or damaged)") from error
        found = {"zarr.json": meta} | {f"{name}/zarr.json": value for name, value in inner.items()}
        for name, value in found.items():
            path = self.folder / name
            if path.exists() and not _same_store(json.loads(path.read_bytes()), value):
                raise StoreError(f"{self.folder} holds samples of a previous store at {url}: delete that folder")
        for name, value in found.items():
            self._write(name, json.dumps(value).encode())

    def _write(self, name: str, data: bytes) -> None:
        atomic_write_bytes(self.folder / name, data, durable=self.cache is not None)


def _temporary_folder() -> tempfile.TemporaryDirectory[str]:
    """Create a temporary folder, and delete those that killed processes left behind."""
    name = Path(tempfile.gettempdir()) / "repa-pipe"
    remove_abandoned(name.parent, name.name)
    return tempfile.TemporaryDirectory(prefix=temporary_path(name).name)


def _same_store(cached: dict[str, Any], fetched: dict[str, Any]) -> bool:
    """Return whether two versions of a zarr.json describe the same images, weights and shapes."""
    mine, theirs = ({k: v for k, v in meta.items() if k != "consolidated_metadata"} for meta in (cached, fetched))
    if ROOT_ATTRIBUTE in mine.get("attributes", {}):
        return bool(mine["attributes"][ROOT_ATTRIBUTE] == theirs["attributes"].get(ROOT_ATTRIBUTE))
    fingerprints = [meta.get("attributes", {}).get("fingerprint") for meta in (mine, theirs)]
    shapes = [(meta.get("shape"), meta.get("codecs")) for meta in (mine, theirs)]
    return fingerprints[0] == fingerprints[1] and shapes[0] == shapes[1]


class RemoteReader:
    """A `BatchReader` for a mirrored store: samples that are not in the folder are fetched, one request per sample."""

    def __init__(self, mirror: Mirror) -> None:
        self._mirror, self._local = mirror, BatchReader()
        self._cached: dict[Path, CachedSampleMap] = {}
        self._lock = threading.Lock()

    def read(self, requests: Sequence[ReadRequest], indices: npt.NDArray[np.int64], direct: bool) -> None:
        """Fill each request's buffer with the samples at `indices`. See `BatchReader.read`."""
        self._prepare_shards(requests, indices)
        if self._mirror.cache is None:
            for request in requests:
                request.buffer[request.places] = self._fetch(request, indices[request.places])
            return
        for request in requests:
            self._cache(request, indices)
        self._local.read(requests, indices, direct)

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
                path = array.shard_path(shard)
                if not path.exists():
                    size, length = array.file_bytes(request.commits[shard]), array.index_bytes
                    wanted[path] = size, (self._key(path), max(0, size - length), min(size, length))
        tails = self._mirror.files.get_ranges([part for _, part in wanted.values()]) if wanted else []
        for (path, (size, (_, start, _))), tail in zip(wanted.items(), tails, strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = temporary_path(path)
            with temporary.open("wb") as file:
                file.truncate(size)
                os.pwrite(file.fileno(), tail, start)
            try:
                os.link(temporary, path)  # unlike a rename, never replaces a file that already holds samples
            except FileExistsError:
                pass
            finally:
                temporary.unlink()

    def _fetch(self, request: ReadRequest, rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """Fetch the samples at `rows` from the URL, `[len(rows), *sample_shape]`."""
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

    def _cache(self, request: ReadRequest, indices: npt.NDArray[np.int64]) -> None:
        """Fetch the samples that are not cached, and write them into the sparse files."""
        array, size = request.array, request.array.layout.shard_size
        cached = self._cached_samples(array)
        rows = np.unique(indices[request.places & ~cached.samples[indices]])
        if not len(rows):
            return
        block = self._fetch(request, rows).reshape(len(rows), -1).view(np.uint8)
        shards = np.unique(rows // size).tolist()
        for shard in shards:
            offsets = array.offsets(shard, request.commits[shard])
            with array.shard_path(shard).open("r+b", buffering=0) as file:
                for place in np.flatnonzero(rows // size == shard).tolist():
                    os.pwrite(file.fileno(), block[place].data, int(offsets[rows[place] % size]))
        cached.add(rows, [array.shard_path(shard) for shard in shards])

    def _cached_samples(self, array: ShardIndex) -> CachedSampleMap:
        with self._lock:
            path = array.layout.path / CACHED_SAMPLES_FILE
            if path not in self._cached:
                self._cached[path] = CachedSampleMap(path, array.layout.shape[0])
            return self._cached[path]

    def _key(self, path: Path) -> str:
        return str(path.relative_to(self._mirror.folder))


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
