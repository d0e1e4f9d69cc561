"""Create a store and its groups, write the shards of a group, and commit them.

Each step of writing a shard is durable before the next one: samples to `<file>.tmp-…`, index, fsync, rename, fsync of
the folder, the same for the checksums, then the commit record. A kill at any moment leaves an uncommitted shard, which
the next run writes again. A second writer of the same shard overwrites it with the same bytes.
"""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ..errors import StoreError
from .checksum import crc32c, crc32c_rows
from .files import atomic_replace, atomic_write_bytes, confined, fsync_directory, temporary_path
from .latent_statistics import LatentStatistics
from .layout import CRC32C, FIXED, MOMENTS, ArraySpec, GroupSpec, shard_file, shard_range
from .manifest import Commit, FileRecord, Manifest, Quarantined, new_commit, read_commit, write_commit, write_samples
from .metadata_writer import consolidate, create_group_node, create_parent_node, create_root_node, write_root_digest
from .names import check_path

MISSING_CHUNK = 2**64 - 1  # marks a missing chunk in zarr's shard index


def create_store(path: Path, manifest: Manifest, samples: pa.Table) -> None:
    """Create an empty store atomically: root group, labels, sample index.

    Args:
        path: the folder to create.
        manifest: the root attributes.
        samples: the sample index, row i for sample i.

    Raises:
        StoreError: `path` exists and is not an empty folder.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise StoreError(f"{path} exists and is not empty: choose another folder, or delete it first")
    path = path.resolve()  # a folder cannot replace a symbolic link
    path.parent.mkdir(parents=True, exist_ok=True)
    building = temporary_path(path)
    try:
        create_root_node(building, manifest, samples.column("label").to_numpy().astype(np.int32))
        write_samples(building, samples)
        write_root_digest(building)
        consolidate(building)
        building.replace(path)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    fsync_directory(path.parent)


def create_group(store: Path, manifest: Manifest, spec: GroupSpec) -> None:
    """Create a group's metadata atomically from its template, before any shard is written.

    If another writer has created the group in the meantime, its group is kept. The caller compares fingerprints
    afterwards.
    """
    target = confined(store, check_path(spec.path, "--vae or --encoder", 2))
    create_parent_node(target.parent)
    building = temporary_path(target)
    try:
        create_group_node(building, manifest, spec)
        _rename_group(building, target)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    consolidate(store)


def _rename_group(building: Path, target: Path) -> None:
    try:
        building.rename(target)
    except OSError:
        if not (target / "zarr.json").exists():
            raise
    fsync_directory(target.parent)


def shard_index(num_samples: int, sample_bytes: int, shard_size: int) -> bytes:
    """Return the index at the end of a shard file: offset and size of every sample, then a checksum of the index."""
    index = np.full((shard_size, 2), MISSING_CHUNK, dtype="<u8")
    index[:num_samples, 0] = np.arange(num_samples, dtype=np.uint64) * sample_bytes
    index[:num_samples, 1] = sample_bytes
    return index.tobytes() + struct.pack("<I", crc32c(index))


class ShardFile:
    """A shard file of one array, written as a stream of samples: zarr v3 sharding with one sample per inner chunk."""

    def __init__(self, path: Path, array: ArraySpec, shard_size: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.array, self.shard_size = path, array, shard_size
        self.num_samples = 0
        self.checksum = 0
        self._temporary = temporary_path(path)
        self._file = self._temporary.open("wb", buffering=0)

    def append(self, block: npt.NDArray[Any]) -> None:
        """Append samples `[B, *sample_shape]` with the array's dtype."""
        if block.shape[1:] != self.array.sample_shape or block.dtype != np.dtype(self.array.dtype):
            raise StoreError(
                f"array '{self.array.name}': expected samples {self.array.sample_shape} {self.array.dtype} from the "
                f"encoder, found {block.shape[1:]} {block.dtype}"
            )
        block = np.ascontiguousarray(block)
        self._write(block.reshape(-1).view(np.uint8).data)
        self.checksum = crc32c(block, self.checksum)
        self.num_samples += len(block)

    def finish(self) -> FileRecord:
        """Write the index, sync the file, and rename it to its final name. Return its size and checksum."""
        size = self.array.sample_bytes
        tail = shard_index(self.num_samples, size, self.shard_size)
        self._write(memoryview(tail))
        os.fsync(self._file.fileno())
        self._file.close()
        atomic_replace(self._temporary, self.path)
        fsync_directory(self.path.parent)
        checksum = crc32c(np.frombuffer(tail, np.uint8), self.checksum)
        return {"bytes": self.num_samples * size + len(tail), "crc32c": checksum}

    def abort(self) -> None:
        """Delete the temporary file. Does nothing after `finish`."""
        self._file.close()
        self._temporary.unlink(missing_ok=True)

    def _write(self, data: memoryview) -> None:
        start = self._file.tell()
        size = len(data)
        while data:
            written = self._file.write(data)
            data = data[written:]
        # Starts write-back now instead of at the fsync, and leaves the page cache to readers.
        os.posix_fadvise(self._file.fileno(), start, size, os.POSIX_FADV_DONTNEED)


class ShardWriter:
    """Writes one shard of one group. A context manager that deletes temporary files on failure.

    with ShardWriter(store, manifest, spec, shard) as writer:
        writer.append({"tokens": block, ...})          # in the order of the samples
        commit = writer.commit(source_checksums, quarantined)

    Args:
        store: local folder of the store.
        manifest: root attributes of the store.
        spec: the group's template.
        shard: number of the shard.
        replace: replace a committed shard, which is damaged. It remains until the new one is complete.
    """

    def __init__(self, store: Path, manifest: Manifest, spec: GroupSpec, shard: int, *, replace: bool = False) -> None:
        self.store, self.manifest, self.spec, self.shard = store, manifest, spec, shard
        self._replace = replace
        self.samples = shard_range(shard, manifest.num_samples, manifest.shard_size)
        self._files: dict[str, ShardFile] = {}
        self._row_checksums: list[npt.NDArray[np.uint32]] = []
        self._cosines: list[npt.NDArray[np.float32]] = []
        self._latents = LatentStatistics()
        self._float32_samples: list[int] = []

    def __enter__(self) -> Self:
        for array in self.spec.arrays:
            path = confined(self.store, f"{self.spec.path}/{array.name}/{shard_file(array, self.shard)}")
            self._files[array.name] = ShardFile(path, array, self.manifest.shard_size)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files.values():
            file.abort()

    def append(
        self,
        blocks: Mapping[str, npt.NDArray[Any]],
        token_cosine: npt.NDArray[np.float32] | None = None,
        float32_rows: Sequence[int] = (),
    ) -> None:
        """Append the next samples.

        Args:
            blocks: for every array of the group a block `[B, *sample_shape]`.
            token_cosine: `[n]`, cosines between tokens and what the codec restores. The commit record contains their
                mean and minimum.
            float32_rows: rows of the blocks that were encoded in float32 because they overflowed in half precision.

        Raises:
            StoreError: a block has another shape or dtype than its array, or latents are NaN or infinite.
        """
        if MOMENTS in blocks:
            self._latents.append(blocks[MOMENTS])
        if FIXED in blocks:
            self._latents.append_fixed(blocks[FIXED])
        first = self.samples.start + sum(map(len, self._row_checksums))
        self._float32_samples += [first + row for row in float32_rows]
        for name, file in self._files.items():
            file.append(blocks[name])
        self._cosines.append(np.empty(0, np.float32) if token_cosine is None else token_cosine)
        self._row_checksums.append(np.stack([crc32c_rows(blocks[name]) for name in self._files], axis=1))

    def commit(self, source_checksums: npt.NDArray[np.uint32], quarantined: tuple[Quarantined, ...]) -> Commit:
        """Finish the files and write the commit record.

        A shard that another writer has committed in the meantime is not modified, and its record is returned, unless
        it is to be replaced: a worker on another type of machine, presumed dead, may have produced different last bits.

        Args:
            source_checksums: CRC-32C of the encoded bytes of every image, `[num_samples]`.
            quarantined: images of the shard that could not be decoded.

        Raises:
            StoreError: the number of appended samples is not that of the shard.
        """
        existing = None if self._replace else read_commit(self.store, self.spec.path, self.shard)
        if existing is not None:
            return existing
        for file in self._files.values():
            if file.num_samples != len(self.samples):
                raise StoreError(
                    f"{self.spec.path} shard {self.shard} was not committed: expected {len(self.samples)} samples, "
                    f"{file.num_samples} were written"
                )
        files = {
            str(file.path.relative_to(self.store / self.spec.path)): file.finish() for file in self._files.values()
        }
        files |= self._write_row_checksums()
        cosines = np.concatenate(self._cosines)
        commit = new_commit(
            self.spec.path,
            self.shard,
            files,
            source_checksums,
            quarantined,
            token_cosines=cosines,
            latents=self._latents.summary(),
            float32_samples=tuple(self._float32_samples),
        )
        write_commit(self.store, commit)
        return commit

    def _write_row_checksums(self) -> dict[str, FileRecord]:
        rows = np.zeros((self.manifest.shard_size, len(self.spec.arrays)), dtype="<u4")
        rows[: len(self.samples)] = np.concatenate(self._row_checksums)
        name = f"{CRC32C}/c/{self.shard}/0"
        atomic_write_bytes(confined(self.store, f"{self.spec.path}/{name}"), rows.tobytes())
        return {name: {"bytes": rows.nbytes, "crc32c": crc32c(rows)}}
