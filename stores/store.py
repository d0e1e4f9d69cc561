"""A store opened for reading: its groups, its samples, and batches of them."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

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
    """One group of a store: its arrays, attributes and commit records.

    Attributes:
        path: `latents/NAME` or `features/NAME`.
        attributes: attributes of the zarr group.
        shard_indexes: the arrays that hold samples, by name.
    """

    def __init__(self, store: Path, path: str, manifest: Manifest, location: str | None = None) -> None:
        self._store, self.path, self._manifest = store, path, manifest
        self._location = location or str(store)
        meta = json.loads((store / path / "zarr.json").read_bytes())
        self.attributes: dict[str, Any] = meta["attributes"]
        names = json.loads((store / path / CRC32C / "zarr.json").read_bytes())["attributes"]["arrays"]
        self.shard_indexes = {name: ShardIndex(read_layout(store / path / name)) for name in names}

    @property
    def arrays(self) -> tuple[ArraySpec, ...]:
        """The arrays that hold samples, without the checksums."""
        return tuple(reader.layout.spec for reader in self.shard_indexes.values())

    @property
    def spec(self) -> GroupSpec:
        """The template that the group was created from."""
        return GroupSpec(path=self.path, arrays=self.arrays, attributes=self.attributes)

    @property
    def fingerprint(self) -> dict[str, Any]:
        """The record of what produced the group: weights, architecture, preprocessing, precision, versions."""
        fingerprint: dict[str, Any] = self.attributes["fingerprint"]
        return fingerprint

    def missing_shards(self) -> list[int]:
        """Return the shards that currently have no commit record."""
        done = committed_shards(self._store, self.path)
        total = num_shards(self._manifest.num_samples, self._manifest.shard_size)
        return [shard for shard in range(total) if shard not in done]

    @cached_property
    def commits(self) -> dict[int, Commit]:
        """All commit records of the group, by shard. Read on first use."""
        shards = sorted(committed_shards(self._store, self.path))
        found = {shard: read_commit(self._store, self.path, shard) for shard in shards}
        return {shard: commit for shard, commit in found.items() if commit is not None}

    @property
    def quarantined(self) -> list[Quarantined]:
        """Images of this group that could not be encoded."""
        return [entry for commit in self.commits.values() for entry in commit.quarantined]

    @property
    def num_bytes(self) -> int:
        """Bytes on disk of all committed shards."""
        return sum(file["bytes"] for commit in self.commits.values() for file in commit.files.values())

    @property
    def token_cosine(self) -> tuple[float, float] | None:
        """Mean and minimum cosine between original and restored tokens, as measured by `encode`. None if it was not."""
        found = [commit.token_cosine for commit in self.commits.values() if commit.token_cosine]
        if not found:
            return None
        total = sum(cosine["mean"] * cosine["tokens"] for cosine in found)
        return total / sum(cosine["tokens"] for cosine in found), min(cosine["least"] for cosine in found)

    def require_complete(self) -> None:
        """Raise StoreError unless every shard is committed: zarr reads missing shards as zeros."""
        missing = self.missing_shards()
        if missing:
            total = num_shards(self._manifest.num_samples, self._manifest.shard_size)
            kind, name = self.path.split("/", 1)
            option = "--vae" if kind == "latents" else "--encoder"
            raise StoreError(
                f"{self._location}: {self.path} has {total - len(missing)} of {total} shards: "
                f"re-run 'repa-pipe encode … {option} {name}' to complete it"
            )


class Store:
    """A store opened for reading. Opening is fast: arrays and commit records are read on first use.

    Created by `open_store`. A context manager that closes files and threads.

    Attributes:
        path: the local folder; for a store behind a URL, the folder that mirrors it.
        location: the folder or URL, for messages.
        manifest: the root attributes.
    """

    def __init__(self, path: Path, mirror: Mirror | None = None) -> None:
        self.path, self._mirror = path, mirror
        self.location = str(path) if mirror is None else mirror.files.url
        try:
            meta = json.loads((path / "zarr.json").read_bytes())
        except FileNotFoundError as error:
            raise StoreError(f"no store at {path}: create one with 'repa-pipe encode --store {path} …'") from error
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
        """Pickle the location: another process opens the store itself, since files and threads cannot be copied."""
        return open_store, (self.location, self._mirror.cache if self._mirror else None)

    def close(self) -> None:
        """Close files and threads."""
        self._reader.close()
        if self._mirror is not None:
            self._mirror.close()

    def group_names(self) -> list[str]:
        """Return the paths of all groups, complete or not: `latents/NAME`, then `features/NAME`."""
        return [
            f"{kind}/{folder.name}"
            for kind in ("latents", "features")
            if (self.path / kind).is_dir()
            for folder in sorted((self.path / kind).iterdir())
            if TEMPORARY not in folder.name and (folder / CRC32C / "zarr.json").exists()
        ]

    @property
    def vaes(self) -> tuple[str, ...]:
        """Names of the latents groups, complete or not, in the order of `group_names()`."""
        return self._names_of("latents")

    @property
    def encoders(self) -> tuple[str, ...]:
        """Names of the features groups, complete or not, in the order of `group_names()`."""
        return self._names_of("features")

    def _names_of(self, kind: str) -> tuple[str, ...]:
        return tuple(name.removeprefix(f"{kind}/") for name in self.group_names() if name.startswith(f"{kind}/"))

    def complete_groups(self, kind: Literal["latents", "features"]) -> list[str]:
        """Return the paths of the groups of one kind of which every shard is committed."""
        names = [f"{kind}/{name}" for name in self._names_of(kind)]
        return [name for name in names if not self.group(name).missing_shards()]

    def quarantined(self, group_names: Sequence[str] | None = None) -> dict[int, Quarantined]:
        """Return the images that could not be encoded, by sample index.

        Args:
            group_names: groups to consider. None: all groups.
        """
        names = self.group_names() if group_names is None else group_names
        return {entry.index: entry for name in names for entry in self.group(name).quarantined}

    def group(self, name: str) -> Group:
        """Return a group by its path.

        Raises:
            StoreError: the store has no such group. The message lists the existing ones.
        """
        if name not in self._groups:
            if name not in self.group_names():
                existing = ", ".join(self.group_names()) or "no groups"
                kind, model = name.split("/", 1) if "/" in name else ("features", name)
                option = "--vae" if kind == "latents" else "--encoder"
                raise StoreError(
                    f"{self.location} has no '{name}' (it has {existing}): "
                    f"run 'repa-pipe encode … {option} {model}' first"
                )
            if self._mirror is not None:
                self._mirror.fetch_commits(name, num_shards(len(self), self.manifest.shard_size))
            self._groups[name] = Group(self.path, name, self.manifest, self.location)
        return self._groups[name]

    def fetch_commits(self, shard: int) -> None:
        """Fetch a shard's commit records of all groups into `path`, if the store is behind a URL."""
        if self._mirror is not None:
            self._mirror.fetch_shard(shard)

    def upload_group(self, name: str) -> None:
        """Upload the metadata of a group that was created in `path`, if the store is behind a URL."""
        if self._mirror is not None:
            put_group(self._mirror, name)

    def upload_shard(self, commit: Commit) -> None:
        """Upload a shard that was written and committed in `path`, if the store is behind a URL."""
        if self._mirror is not None:
            put_shard(self._mirror, commit)

    def upload_file(self, name: str) -> None:
        """Upload a file that was written in `path`, if the store is behind a URL."""
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
        """Return the local path of a file of the store, fetched first if the store is behind a URL."""
        if self._mirror is not None:
            self._mirror.fetch([name])
        return self.path / name

    def valid_indices(self, group_names: Sequence[str]) -> npt.NDArray[np.int64]:
        """Return the samples that are not quarantined in any of the groups, `[n]` int64 in ascending order.

        Raises:
            StoreError: a group is missing or incomplete.
        """
        for name in group_names:
            self.group(name).require_complete()
        valid = np.ones(len(self), dtype=bool)
        valid[list(self.quarantined(group_names))] = False
        return np.flatnonzero(valid).astype(np.int64)

    def outgrows_memory(self, group_names: Sequence[str]) -> bool:
        """Return whether the groups are larger than the page cache can become: 0.7 of this machine's memory."""
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
        """Read the samples at `indices`, in that order. Duplicates are allowed.

        Args:
            group_names: groups (`features/dinov2-vit-b`: all its arrays), single arrays
                (`features/dinov2-vit-b/tokens`), or `label`.
            indices: samples to read, `[B]`.
            out: buffers to fill, by the same keys as the result.
            direct: bypass the page cache, for arrays whose samples are multiples of 4,096 bytes and whose buffers in
                `out` are aligned to 4,096 bytes.
            flipped: `[B]`, samples to take from the flipped view of each array.

        Returns:
            `{path of the array: [B, *sample_shape]}` with the stored dtype.

        Raises:
            StoreError: a group is missing, a shard is not committed, a sample is quarantined, or the store is damaged.
            IndexError: an index is outside [0, N).
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
                path = request.array.layout.path
                request.buffer[request.places] = read_through_zarr(self.path, path, rows[request.places], files)
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
            raise IndexError(f"indices must be one-dimensional integers, found shape {rows.shape} {rows.dtype}")
        if rows.size and (rows.min() < 0 or rows.max() >= len(self)):
            raise IndexError(f"indices must be in [0, {len(self)}), found {rows.min()} to {rows.max()}")
        return rows.astype(np.int64)

    def _require_committed(self, group: Group, rows: npt.NDArray[np.int64]) -> None:
        for shard in np.unique(rows // self.manifest.shard_size).tolist():
            if shard not in group.commits:
                raise StoreError(
                    f"{self.location}: shard {shard} of {group.path} is not complete: "
                    "re-run 'repa-pipe encode' to complete it"
                )
            bad = {entry.index: entry for entry in group.commits[shard].quarantined}
            for row in set(bad) & set(rows.tolist()) if bad else ():
                raise StoreError(
                    f"{self.location}: sample {row} ({bad[row].key}) is quarantined: {bad[row].reason}; "
                    "use indices from valid_indices()"
                )


def open_store(path: str | Path, cache: str | Path | None = None) -> Store:
    """Open a store for reading.

    Args:
        path: a folder, or a URL (s3://, gs://, az://, http://, https://; see `stores.remote`).
        cache: folder that keeps the samples read from a URL. None: samples are fetched every time.

    Raises:
        StoreError: there is no store at `path`.
    """
    if not is_url(str(path)):
        return Store(Path(path))
    mirror = Mirror(str(path), None if cache is None else Path(cache))
    return Store(mirror.folder, mirror)
