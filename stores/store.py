"""`open_store`: one object that knows what a store holds and reads batches from it."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ..errors import StoreError
from .files import TEMPORARY
from .layout import CRC32C, FLIPPED, LABEL, SAMPLES_FILE, ArraySpec, GroupSpec, is_flipped, num_shards
from .manifest import Commit, Manifest, Quarantined, committed_shards, read_commit, read_samples
from .mirror import Mirror, RemoteReader
from .reader import BatchReader, ReadRequest, ShardIndex, read_layout
from .remote import is_url
from .upload import put_group, put_shard
from .zarr_path import read_through_zarr


class Group:
    """One group of a store: its arrays, its attributes, its commits."""

    def __init__(self, store: Path, path: str, manifest: Manifest, location: str | None = None) -> None:
        self._store, self.path, self._manifest = store, path, manifest
        self._location = location or str(store)
        meta = json.loads((store / path / "zarr.json").read_bytes())
        self.attributes: dict[str, Any] = meta["attributes"]
        names = json.loads((store / path / CRC32C / "zarr.json").read_bytes())["attributes"]["arrays"]
        self.shard_indexes = {name: ShardIndex(read_layout(store / path / name)) for name in names}

    @property
    def arrays(self) -> tuple[ArraySpec, ...]:
        """The arrays that hold samples, checksums left out."""
        return tuple(reader.layout.spec for reader in self.shard_indexes.values())

    @property
    def spec(self) -> GroupSpec:
        """The template that the group was created from."""
        return GroupSpec(path=self.path, arrays=self.arrays, attributes=self.attributes)

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What made the group: weights, architecture, preprocessing, precision, versions."""
        fingerprint: dict[str, Any] = self.attributes["fingerprint"]
        return fingerprint

    def missing_shards(self) -> list[int]:
        """Shards without a commit record, looked up now."""
        done = committed_shards(self._store, self.path)
        total = num_shards(self._manifest.num_samples, self._manifest.shard_size)
        return [shard for shard in range(total) if shard not in done]

    @cached_property
    def commits(self) -> dict[int, Commit]:
        """All commit records of the group."""
        shards = sorted(committed_shards(self._store, self.path))
        found = {shard: read_commit(self._store, self.path, shard) for shard in shards}
        return {shard: commit for shard, commit in found.items() if commit is not None}

    @property
    def quarantined(self) -> list[Quarantined]:
        """Images of this group that could not be encoded."""
        return [entry for commit in self.commits.values() for entry in commit.quarantined]

    @property
    def token_cosine(self) -> tuple[float, float] | None:
        """Mean and least cosine between the encoder's tokens and the stored ones, as `encode` measured; else None."""
        found = [commit.token_cosine for commit in self.commits.values() if commit.token_cosine]
        if not found:
            return None
        total = sum(cosine["mean"] * cosine["tokens"] for cosine in found)
        return total / sum(cosine["tokens"] for cosine in found), min(cosine["least"] for cosine in found)

    def require_complete(self) -> None:
        """Raise StoreError unless every shard is committed: a shard that is not there would read as zeros."""
        missing = self.missing_shards()
        if missing:
            total = num_shards(self._manifest.num_samples, self._manifest.shard_size)
            kind, name = self.path.split("/", 1)
            option = "--vae" if kind == "latents" else "--encoder"
            raise StoreError(
                f"{self._location}: {self.path} has {total - len(missing)} of {total} shards: "
                f"run 'repa-pipe encode … {option} {name}' to finish it"
            )


class Store:
    """A store opened for reading. Cheap to open: arrays and commit records are looked at when first needed."""

    def __init__(self, path: Path, mirror: Mirror | None = None) -> None:
        self.path, self._mirror = path, mirror
        self.location = str(path) if mirror is None else mirror.files.url  # what people call it
        try:
            meta = json.loads((path / "zarr.json").read_bytes())
        except FileNotFoundError as error:
            raise StoreError(f"no store at {path}: make one with 'repa-pipe encode --store {path} …'") from error
        except (OSError, ValueError) as error:
            raise StoreError(f"{path / 'zarr.json'} cannot be read ({error})") from error
        self.manifest = Manifest.from_attributes(meta.get("attributes", {}), path)
        self._groups: dict[str, Group] = {}
        self._reader = BatchReader() if mirror is None else RemoteReader(mirror)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        return self.manifest.num_samples

    def __reduce__(self) -> tuple[Any, ...]:
        """Open it anew in the process that a copy is sent to: files and threads stay here."""
        return open_store, (self.location, self._mirror.cache if self._mirror else None)

    def close(self) -> None:
        """Close files and threads."""
        self._reader.close()
        if self._mirror is not None:
            self._mirror.close()

    def group_names(self) -> list[str]:
        """Every group there is, complete or not: `latents/…`, `features/…`."""
        return [
            f"{kind}/{folder.name}"
            for kind in ("latents", "features")
            if (self.path / kind).is_dir()
            for folder in sorted((self.path / kind).iterdir())
            if TEMPORARY not in folder.name and (folder / CRC32C / "zarr.json").exists()
        ]

    def group(self, name: str) -> Group:
        """A group by its path; StoreError that lists what there is when it is absent."""
        if name not in self._groups:
            if name not in self.group_names():
                there = ", ".join(self.group_names()) or "no group yet"
                kind, model = name.split("/", 1) if "/" in name else ("features", name)
                option = "--vae" if kind == "latents" else "--encoder"
                raise StoreError(
                    f"{self.location} has no '{name}' (it has {there}): run 'repa-pipe encode … {option} {model}' first"
                )
            if self._mirror is not None:
                self._mirror.fetch_commits(name, num_shards(len(self), self.manifest.shard_size))
            self._groups[name] = Group(self.path, name, self.manifest, self.location)
        return self._groups[name]

    def fetch_commits(self, shard: int) -> None:
        """Have the shard's commit records, of all groups, in `path`: they are there unless it mirrors a URL."""
        if self._mirror is not None:
            self._mirror.fetch_shard(shard)

    def upload_group(self, name: str) -> None:
        """Put a group whose metadata were made in `path` to the URL that it mirrors, if it does."""
        if self._mirror is not None:
            put_group(self._mirror, name)

    def upload_shard(self, commit: Commit) -> None:
        """Put a shard that was written and committed in `path` to the URL that it mirrors, if it does."""
        if self._mirror is not None:
            put_shard(self._mirror, commit)

    def upload_file(self, name: str) -> None:
        """Put a file that was written in `path` to the URL that it mirrors, if it does."""
        if self._mirror is not None:
            self._mirror.files.put({name: self.path / name})

    @cached_property
    def labels(self) -> npt.NDArray[np.int32]:
        """Class labels, `[N]` int32."""
        data = self._local(f"{LABEL}/c/0").read_bytes()
        return np.frombuffer(data, dtype="<i4")

    @cached_property
    def samples(self) -> pa.Table:
        """The sample index: columns key, label, num_bytes, where."""
        self._local(SAMPLES_FILE)
        return read_samples(self.path)

    def _local(self, name: str) -> Path:
        """A file of the store as a local one: fetched when the store is behind a URL."""
        if self._mirror is not None:
            self._mirror.fetch([name])
        return self.path / name

    def valid_indices(self, group_names: Sequence[str]) -> npt.NDArray[np.int64]:
        """Samples that every one of the groups holds: all but the quarantined, `[n]` int64 in ascending order.

        Raises StoreError when a group is not complete.
        """
        valid = np.ones(len(self), dtype=bool)
        for name in group_names:
            self.group(name).require_complete()
            valid[[entry.index for entry in self.group(name).quarantined]] = False
        return np.flatnonzero(valid).astype(np.int64)

    def outgrows_memory(self, group_names: Sequence[str]) -> bool:
        """Whether the groups are larger than what this machine's page cache can hold: 0.7 of its memory."""
        total = len(self) * sum(self.group(name).spec.sample_bytes for name in group_names)
        return total > 0.7 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

    def read(
        self,
        group_names: Sequence[str],
        indices: Sequence[int] | npt.NDArray[np.integer[Any]],
        out: dict[str, npt.NDArray[Any]] | None = None,
        direct: bool = False,
        flipped: npt.NDArray[np.bool_] | None = None,
    ) -> dict[str, npt.NDArray[Any]]:
        """Read the samples at `indices`, in that order, duplicates welcome.

        `group_names` are groups (`features/dinov2-vit-b`: all their arrays), single arrays
        (`features/dinov2-vit-b/tokens`) or `label`. Returns `{path of the array: [len(indices), *sample_shape]}`
        with the stored dtype; buffers given in `out` are filled and returned. `direct` reads past the page cache
        where samples are multiples of 4,096 bytes and the buffers in `out` start at such. `flipped`
        `[len(indices)]` says which samples are taken from the flipped view of each array.

        Raises StoreError for an absent group, a shard without commit, a quarantined sample, or damage;
        IndexError for an index outside [0, N).
        """
        rows = self._checked(indices)
        arrays: dict[str, npt.NDArray[Any]] = {}
        requests: list[ReadRequest] = []
        views = [(np.ones(len(rows), dtype=bool), "")] if flipped is None else [(~flipped, ""), (flipped, FLIPPED)]
        for name in group_names:
            if name == LABEL:
                arrays[LABEL] = self.labels[rows]
                continue
            group, readers = self._resolve(name)
            self._require_committed(group, rows)
            for array, reader in readers.items():
                key = f"{group.path}/{array}"
                if key in arrays or (flipped is not None and is_flipped(array)):
                    continue
                layout = reader.layout
                arrays[key] = (
                    out[key] if out and key in out else np.empty((len(rows), *layout.spec.sample_shape), layout.dtype)
                )
                for places, suffix in views:
                    _, view = self._resolve(key + suffix)
                    requests.append(ReadRequest(view[array + suffix], arrays[key], group.commits, places))
        plain = [request for request in requests if request.array.layout.plain]
        if plain and len(rows):
            self._reader.read(plain, rows, direct)
        files = None if self._mirror is None else self._mirror.files
        for request in requests:
            if not request.array.layout.plain:
                where = request.array.layout.path
                request.buffer[request.places] = read_through_zarr(self.path, where, rows[request.places], files)
        return arrays

    def _resolve(self, name: str) -> tuple[Group, dict[str, ShardIndex]]:
        if name.count("/") == 2:
            path, array = name.rsplit("/", 1)
            group = self.group(path)
            if array not in group.shard_indexes:
                raise StoreError(
                    f"{self.location}: {path} has no array '{array}' (it has {', '.join(group.shard_indexes)})"
                )
            return group, {array: group.shard_indexes[array]}
        group = self.group(name)
        return group, group.shard_indexes

    def _checked(self, indices: Sequence[int] | npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.int64]:
        rows = np.asarray(indices)
        if rows.ndim != 1 or (rows.size and not np.issubdtype(rows.dtype, np.integer)):
            raise IndexError(f"indices must be a list of integers, found shape {rows.shape} {rows.dtype}")
        if rows.size and (rows.min() < 0 or rows.max() >= len(self)):
            raise IndexError(f"indices must lie in [0, {len(self)}), found {rows.min()} to {rows.max()}")
        return rows.astype(np.int64)

    def _require_committed(self, group: Group, rows: npt.NDArray[np.int64]) -> None:
        for shard in np.unique(rows // self.manifest.shard_size).tolist():
            if shard not in group.commits:
                raise StoreError(
                    f"{self.location}: shard {shard} of {group.path} is not complete: "
                    "run 'repa-pipe encode' again to finish it"
                )
            bad = {entry.index: entry for entry in group.commits[shard].quarantined}
            for row in set(bad) & set(rows.tolist()) if bad else ():
                raise StoreError(
                    f"{self.location}: sample {row} ({bad[row].key}) is quarantined: {bad[row].reason}; "
                    "take indices from valid_indices()"
                )


def open_store(path: str | Path, cache: str | Path | None = None) -> Store:
    """Open a store for reading: a folder, or a URL (s3://, gs://, az://, http://, https://; `stores.remote`).

    `cache` names a folder that keeps the samples read from a URL. Raises StoreError when there is no store at `path`.
    """
    if not is_url(str(path)):
        return Store(Path(path))
    mirror = Mirror(str(path), None if cache is None else Path(cache))
    return Store(mirror.folder, mirror)
