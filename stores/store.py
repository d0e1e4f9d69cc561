"""A store opened for reading: its groups, its samples, and batches of them."""

from __future__ import annotations

import functools
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, Literal, ParamSpec, Self, TypeAlias, TypeVar, get_args, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ..errors import ConfigError, StoreError, first_line
from .checksum import crc32c
from .commit_records import CommitRecords
from .digests import LABELS_FILE, read_recorded
from .hub import is_hub, pinned, pull_hint
from .indexing import Indices, as_names, as_rows, as_single
from .latent_statistics import LatentsSummary, scaled_std
from .layout import (
    FLIPPED,
    LABEL,
    MOMENTS,
    SAMPLES_FILE,
    ArraySpec,
    GroupSpec,
    is_flipped,
    latents_group,
    num_shards,
    shard_file,
    shard_range,
)
from .manifest import (
    RESTORE,
    Commit,
    Manifest,
    Quarantined,
    TokenCosine,
    committed_shards,
    parse_samples,
    require_labels,
)
from .metadata_writer import copy_is_current, group_paths
from .mirror import Mirror
from .model_names import canonical_name
from .read_checks import FIRST, ArrayChecks, CheckReads, RowChecksums
from .reader import BatchReader, Damage, ReadRequest, ShardIndex
from .remote import is_url, local_folder
from .remote_reader import RemoteReader
from .row_set import RowSet
from .selection import Class, rows_at, rows_of_classes, rows_where
from .upload import put_group, put_shard
from .zarr_metadata import read_group, read_root
from .zarr_path import read_through_zarr

if TYPE_CHECKING:
    import pyarrow.compute as pc

Sample: TypeAlias = dict[str, Any]
P = ParamSpec("P")
T = TypeVar("T")

LABELS_AT_ONCE = 1 << 20

logger = logging.getLogger(__name__)
_reported: set[Path] = set()  # stores whose old copy of the metadata was reported: they are opened several times


@dataclass(slots=True)
class _Totals:
    """What the commit records of a group say together."""

    num_bytes: int = 0
    cosines: list[TokenCosine] = field(default_factory=list)
    latents: list[LatentsSummary] = field(default_factory=list)
    float32_samples: list[int] = field(default_factory=list)

    def add(self, commit: Commit) -> None:
        self.num_bytes += sum(file["bytes"] for file in commit.files.values())
        self.cosines += [commit.token_cosine] if commit.token_cosine else []
        self.latents += [commit.latents] if commit.latents else []
        self.float32_samples += commit.float32_samples


class Group:
    """One group of a store: its arrays, attributes and commit records.

    Attributes:
        path: `latents/NAME` or `features/NAME`.
        attributes: attributes of the zarr group, without its digest.
        has_digest: whether attributes and shapes are covered by a checksum, as in stores of this version.
        shard_indexes: the arrays that hold samples, by name.
    """

    def __init__(self, store: Path, path: str, manifest: Manifest, location: str | None = None) -> None:
        self._store, self.path, self._manifest = store, path, manifest
        self._location = location or str(store)
        found = read_group(store, path, manifest)
        self.attributes, self.has_digest = found.attributes, found.has_digest
        self.shard_indexes = {name: ShardIndex(layout) for name, layout in found.layouts.items()}
        plain = [index for index in self.shard_indexes.values() if index.layout.plain]
        self._plain = [(index, index.layout.spec.sample_bytes) for index in plain]

    def __repr__(self) -> str:
        arrays = ", ".join(f"{array.name} {array.dtype} {list(array.sample_shape)}" for array in self.arrays)
        return f"<Group {self.path} of {self._location}: {arrays} per sample; {self.completeness}>"

    @property
    def completeness(self) -> str:
        """`complete`, or the number of committed shards, such as `3 of 16 shards`."""
        total = num_shards(self._manifest.num_samples, self._manifest.shard_size)
        missing = len(self.missing_shards())
        return f"{total - missing} of {total} shards" if missing else "complete"

    @property
    def arrays(self) -> tuple[ArraySpec, ...]:
        """The arrays that hold samples, without the checksums."""
        return tuple(reader.layout.spec for reader in self.shard_indexes.values())

    @property
    def spec(self) -> GroupSpec:
        """The template that the group was created from."""
        return GroupSpec(path=self.path, arrays=self.arrays, attributes=self.attributes)

    @property
    def latents_array(self) -> str:
        """The array of a group of latents: `moments`, from which latents are drawn, or fixed `latents`."""
        return str(self.attributes.get("array", MOMENTS))

    @property
    def latents_channels(self) -> int:
        """Number of channels of the latents of a group of latents."""
        return len(self.attributes["scale"])

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
    def commits(self) -> CommitRecords:
        """The commit records of the shards that were committed on first use, by shard."""
        return CommitRecords(self._store, self.path, self._require_fitting)

    def _require_fitting(self, shard: int, commit: Commit) -> None:
        """Raise StoreError if a commit record describes something else than a shard of this group."""
        samples = shard_range(shard, self._manifest.num_samples, self._manifest.shard_size)
        sizes = {
            f"{index.layout.spec.name}/{shard_file(index.layout.spec, shard)}": len(samples) * size + index.index_bytes
            for index, size in self._plain
        }
        channels = None if commit.latents is None else len(self.attributes.get("scale", ()))
        commit.require_fitting(self.path, shard, samples, sizes, channels)

    @property
    def quarantined(self) -> list[Quarantined]:
        """Images of this group that could not be encoded."""
        return self.commits.quarantined()

    @cached_property
    def _totals(self) -> _Totals:
        """What follows from all commit records, in one pass: they are not all kept in memory."""
        totals = _Totals()
        for commit in self.commits.values():
            totals.add(commit)
        return totals

    @property
    def num_bytes(self) -> int:
        """Bytes on disk of all committed shards."""
        return self._totals.num_bytes

    @property
    def token_cosine(self) -> tuple[float, float] | None:
        """Mean and minimum cosine between original and restored tokens, as measured by `encode`. None if it was not."""
        found = self._totals.cosines
        if not found:
            return None
        total = sum(cosine["mean"] * cosine["tokens"] for cosine in found)
        return total / sum(cosine["tokens"] for cosine in found), min(cosine["least"] for cosine in found)

    @property
    def latents_std(self) -> float | None:
        """Standard deviation of the scaled latents, as measured by `encode`; about 1 if scale and bias are right.

        None if no shard was measured.
        """
        found = self._totals.latents
        return scaled_std(found, self.attributes["scale"], self.attributes["bias"]) if found else None

    @property
    def float32_samples(self) -> list[int]:
        """Samples that overflowed in the group's precision and were encoded in float32, in ascending order."""
        return self._totals.float32_samples

    def require_complete(self) -> None:
        """Raise StoreError unless every shard is committed: zarr reads missing shards as zeros."""
        if self.missing_shards():
            kind, name = self.path.split("/", 1)
            option = "--vae" if kind == "latents" else "--encoder"
            if command := pull_hint(self._store):
                raise StoreError(
                    f"{self._location}: {self.path} has {self.completeness}: re-run '{command}' to complete it"
                )
            raise StoreError(
                f"{self._location}: {self.path} has {self.completeness}: "
                f"re-run 'repa-pipe encode … {option} {name}' to complete it"
            )


def _naming_moved_stores(method: Callable[Concatenate[Store, P], T]) -> Callable[Concatenate[Store, P], T]:
    """Make a method say that the store is gone, instead of the file of it that was missed first."""

    @functools.wraps(method)
    def call(store: Store, /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return method(store, *args, **kwargs)
        except (StoreError, FileNotFoundError) as error:
            if (store.path / "zarr.json").exists():
                raise
            raise StoreError(
                f"{store.location} was moved or deleted while it was read ({first_line(error)}): restore it and re-run "
                "the same command"
            ) from error

    return call


class Store:
    """A store opened for reading. Opening is fast: arrays and commit records are read on first use.

    Created by `open_store`. A context manager that closes files and threads.

    `store["features/dinov2-vit-b"]` is a group. `store[5]` is a sample: a dictionary of its `index`, `key` and `label`,
    and of every array of the complete groups, such as `latents/sd-vae-ft-mse/moments`. `store[-1]`, `store[:8]`,
    `store[[3, 1]]` and `store[mask]` work as in numpy; for several samples, the values are arrays `[B, …]`. Iterating
    over a store yields one sample after the other, without images that could not be encoded.

    Attributes:
        path: the local folder; for a store behind a URL, the folder that mirrors it.
        location: the folder or URL, for messages.
        manifest: the root attributes.
        check_reads: which samples are compared with their checksums when they are read; see `open_store`.
    """

    def __init__(self, path: Path, mirror: Mirror | None = None, check_reads: CheckReads = FIRST) -> None:
        self.path, self._mirror, self.check_reads = path, mirror, check_reads
        self.location = str(path) if mirror is None else mirror.files.url
        root = read_root(path)
        self.manifest, self._digest = root.manifest, root.digest
        if mirror is None and path not in _reported and not copy_is_current(path):
            _reported.add(path)
            logger.warning(
                "%s/zarr.json lists other groups or attributes than the store has, so other programs may not find "
                "them: the next 'repa-pipe encode' updates it",
                path,
            )
        self._groups: dict[str, Group] = {}
        self._checks: dict[str, dict[str, ArrayChecks]] = {}  # by group and array
        self._reader = BatchReader() if mirror is None else RemoteReader(mirror)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        return self.manifest.num_samples

    def __repr__(self) -> str:
        manifest = self.manifest
        groups = ", ".join(map(self._describe, self.group_names())) or "no groups"
        classes = len(manifest.class_names)
        return f"<Store {self.location}: {len(self)} samples, {classes} classes, {manifest.resolution} px; {groups}>"

    def _describe(self, name: str) -> str:
        if self._mirror is not None and name not in self._groups:
            return name  # whether it is complete would take one request per shard
        return f"{name} ({self.group(name).completeness})"

    def __contains__(self, name: object) -> bool:
        """Return whether there is a group of this name."""
        return name in self.group_names()

    @overload
    def __getitem__(self, item: str) -> Group: ...

    @overload
    def __getitem__(self, item: int | Indices) -> Sample: ...

    def __getitem__(self, item: str | int | Indices) -> Group | Sample:
        """Return a group by its path, or samples by their indices.

        Raises:
            StoreError: there is no such group, or a sample is quarantined.
            SampleIndexError: there is no such sample, or the index has another type.
        """
        if isinstance(item, str):
            if item == LABEL or item.count("/") == 2:
                raise StoreError(f"{item} is an array, not a group: read it with store.read([{item!r}], indices)")
            return self.group(item)
        single = as_single(item)
        if single is None:
            return self._samples_at(as_rows(item, len(self)))
        sample = {name: values[0] for name, values in self._samples_at(as_rows([single], len(self))).items()}
        return sample | {"index": int(sample["index"]), "label": int(sample["label"])}

    def __iter__(self) -> Iterator[Sample]:
        """Yield the samples that are not quarantined in a complete group."""
        return self._valid_samples(np.arange(len(self)))

    def _valid_samples(self, rows: npt.NDArray[np.int64]) -> Iterator[Sample]:
        for row in rows[np.isin(rows, self.valid_indices(self._readable_groups()))].tolist():
            yield self[row]

    def _readable_groups(self) -> list[str]:
        total = num_shards(len(self), self.manifest.shard_size)
        return [name for name in self.group_names() if len(self.group(name).commits) == total]

    def _samples_at(self, rows: npt.NDArray[np.int64]) -> Sample:
        keys = self.samples.column("key").take(pa.array(rows)).to_numpy()
        arrays = self.read(self._readable_groups(), rows)
        return {"index": rows, "key": keys, LABEL: self.labels_at(rows), **arrays}

    def select(
        self,
        classes: Class | Sequence[Class] | None = None,
        indices: Indices | None = None,
        where: pc.Expression | None = None,
    ) -> Selection:
        """Select the samples that meet all of the given conditions. Labels and the number of classes stay the same.

        Args:
            classes: names or numbers of classes, or one of them.
            indices: a slice, integers, or one boolean per sample.
            where: a pyarrow expression over the columns of `samples`, and `index`, such as
                `pyarrow.compute.field("num_bytes") > 10_000`.

        Returns:
            A view of the store, with samples in ascending order. It may contain quarantined samples, which
            `AlignmentDataset` skips.

        Raises:
            ConfigError: there is no such class or column, or a sample is listed twice.
            SampleIndexError: the indices are not those of samples.
        """
        chosen = np.ones(len(self), dtype=bool)
        for rows in (
            None if classes is None else rows_of_classes(classes, self.manifest.class_names, self.labels),
            None if indices is None else rows_at(indices, len(self)),
            None if where is None else rows_where(where, self.samples),
        ):
            if rows is not None:
                meets = np.zeros(len(self), dtype=bool)
                meets[rows] = True
                chosen &= meets
        return Selection(self, RowSet.of_mask(chosen))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the location: another process opens the store itself, since files and threads cannot be copied."""
        return open_store, (self.location, self._mirror.cache if self._mirror else None, self.check_reads)

    def close(self) -> None:
        """Close files and threads."""
        self._reader.close()
        if self._mirror is not None:
            self._mirror.close()

    def group_names(self) -> list[str]:
        """Return the paths of all groups, complete or not: `latents/NAME`, then `features/NAME`."""
        return group_paths(self.path)

    @property
    def vaes(self) -> tuple[str, ...]:
        """Names of the latents groups, complete or not, in the order of `group_names()`."""
        return self._names_of("latents")

    @property
    def encoders(self) -> tuple[str, ...]:
        """Names of the features groups, complete or not, in the order of `group_names()`."""
        return self._names_of("features")

    def vae_name(self, vae: str) -> str:
        """Return the name under which the store has the latents of a VAE, whatever the spelling of its path.

        Args:
            vae: a name, or the path of a folder.

        Returns:
            `vae` itself or another spelling of it whose `layout.latents_group` exists, else `canonical_name(vae)`.
        """
        wanted = canonical_name(vae)
        for name in (vae, wanted):
            if latents_group(name) in self.group_names():
                return name
        recorded = (self.group(f"latents/{name}").attributes.get("vae", "") for name in self.vaes)
        return next((name for name in recorded if name and canonical_name(name) == wanted), wanted)

    def _names_of(self, kind: str) -> tuple[str, ...]:
        return tuple(name.removeprefix(f"{kind}/") for name in self.group_names() if name.startswith(f"{kind}/"))

    def complete_groups(self, kind: Literal["latents", "features"]) -> list[str]:
        """Return the paths of the groups of one kind of which every shard is committed."""
        names = [f"{kind}/{name}" for name in self._names_of(kind)]
        return [name for name in names if not self.group(name).missing_shards()]

    def quarantined(self, group_names: str | Sequence[str] | None = None) -> dict[int, Quarantined]:
        """Return the images that could not be encoded, by sample index.

        Args:
            group_names: groups to consider. None: all groups.
        """
        names = self.group_names() if group_names is None else as_names(group_names)
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
                pull = pull_hint(self.path)
                command = f"{pull} --group {name}" if pull else f"repa-pipe encode … {option} {model}"
                raise StoreError(f"{self.location} has no '{name}' (it has {existing}): run '{command}' first")
            self.fetch_group(name)
            self._groups[name] = Group(self.path, name, self.manifest, self.location)
        return self._groups[name]

    def fetch_group(self, name: str) -> None:
        """Fetch the commit records of a group into `path`, if the store is behind a URL."""
        if self._mirror is not None:
            # of the labels, whose size confirms the number of samples: a wrong one would be requests without end
            self._mirror.fetch_commits(name, num_shards(len(self.labels), self.manifest.shard_size))

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
        return self._labels.astype(np.int32, copy=False)

    def labels_at(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
        """Return the class labels of the samples `rows`, `[B]` int32. Takes less memory than `labels`."""
        return self._labels[rows].astype(np.int32)

    @cached_property
    def _labels(self) -> npt.NDArray[np.integer[Any]]:
        """Class labels, `[N]`, in the smallest type that holds those of all classes."""
        if self._mirror is not None:
            self._mirror.fetch([LABELS_FILE])
        path, record = self.path / LABELS_FILE, None if self._digest is None else self._digest.files.get(LABELS_FILE)
        if not path.is_file() or path.stat().st_size != 4 * len(self):
            found = len(read_recorded(path, record))
            raise StoreError(f"{path} has {found:,} bytes, expected {4 * len(self):,}: {RESTORE}")
        labels = np.empty(len(self), np.min_scalar_type(len(self.manifest.class_names) - 1))
        checksum, bounds = 0, []
        with path.open("rb") as file:  # in parts, since the file is several times as large as the result
            for start in range(0, len(self), LABELS_AT_ONCE):
                part = np.fromfile(file, "<i4", min(LABELS_AT_ONCE, len(self) - start))
                labels[start : start + len(part)] = part
                checksum = crc32c(part, checksum)
                bounds += [part.min(), part.max()]
        if record is not None and record != {"bytes": 4 * len(self), "crc32c": checksum}:
            raise StoreError(f"{path} fails its checksum ({4 * len(self):,} bytes): {RESTORE}")
        require_labels(np.array(bounds), self.manifest, path)
        return labels

    @cached_property
    def samples(self) -> pa.Table:
        """The sample index: columns key, label, num_bytes, where."""
        return parse_samples(self._recorded(SAMPLES_FILE), self.manifest, self.path / SAMPLES_FILE)

    def open_file(self, name: str) -> int:
        """Return a descriptor for reading a file of the store; if the store is behind a URL, of a copy without a name.

        Raises:
            FileNotFoundError: there is no such file.
        """
        return os.open(self.path / name, os.O_RDONLY) if self._mirror is None else self._mirror.download(name)

    @property
    def has_digest(self) -> bool:
        """Whether attributes, labels and sample index are covered by checksums, as in stores of this version."""
        return self._digest is not None

    def _recorded(self, name: str) -> bytes:
        """Return the contents of a file that is written once; fetched first if the store is behind a URL."""
        if self._mirror is not None:
            self._mirror.fetch([name])
        return read_recorded(self.path / name, None if self._digest is None else self._digest.files.get(name))

    def valid_indices(self, group_names: str | Sequence[str]) -> npt.NDArray[np.int64]:
        """Return the samples that are not quarantined in any of the groups, `[n]` int64 in ascending order.

        Raises:
            StoreError: a group is missing or incomplete, or all samples are quarantined.
        """
        return np.asarray(self.valid_rows(group_names))

    def valid_rows(self, group_names: str | Sequence[str]) -> RowSet:
        """Return `valid_indices` as a set, which takes memory only for quarantined samples."""
        names = as_names(group_names)
        for name in names:
            self.group(name).require_complete()
        bad = np.array(list(self.quarantined(names)), dtype=np.int64)
        valid = RowSet.all_but(len(self), bad)
        if not len(valid):
            raise StoreError(
                f"none of the {len(self):,} images of {self.location} could be decoded ('repa-pipe store ls --store "
                f"{self.location} --quarantined' lists the reasons): check the source, and create a new store"
            )
        return valid

    @_naming_moved_stores
    def read(
        self,
        group_names: str | Sequence[str],
        indices: Indices,
        out: dict[str, npt.NDArray[Any]] | None = None,
        direct: bool = False,
        flipped: npt.NDArray[np.bool_] | None = None,
        *,
        cached_shards: int = 0,
    ) -> dict[str, npt.NDArray[Any]]:
        """Read the samples at `indices`, in that order. Duplicates are allowed.

        Args:
            group_names: groups (`features/dinov2-vit-b`: all its arrays), single arrays
                (`features/dinov2-vit-b/tokens`), or `label`; a single one may be passed as a string.
            indices: samples to read: a slice, integers `[B]` (negative ones count from the end), or one boolean per
                sample.
            out: buffers to fill, by the same keys as the result.
            direct: bypass the page cache, for arrays whose samples are multiples of 4,096 bytes and whose buffers in
                `out` are aligned to 4,096 bytes.
            flipped: `[B]`, samples to take from the flipped view of each array.
            cached_shards: shards, from the first on, that `direct` does not apply to.

        Returns:
            `{path of the array: [B, *sample_shape]}` with the stored dtype.

        Raises:
            StoreError: a group is missing, a shard is not committed, a sample is quarantined, or the store is damaged.
            SampleIndexError: the indices are not those of samples. It is an IndexError.
        """
        rows = as_rows(indices, len(self))
        arrays: dict[str, npt.NDArray[Any]] = {}
        requests: list[ReadRequest] = []
        views = [(np.ones(len(rows), dtype=bool), "")] if flipped is None else [(~flipped, ""), (flipped, FLIPPED)]
        for name in as_names(group_names):
            if name == LABEL:
                arrays[LABEL] = self.labels_at(rows)
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
                    checks = self._checks_of(group, array + suffix)
                    requests.append(ReadRequest(view[array + suffix], arrays[key], group.commits, places, checks))
        plain = [request for request in requests if request.array.layout.plain]
        damage = self._reader.read(plain, rows, direct, cached_shards) if plain and len(rows) else []
        files = None if self._mirror is None else self._mirror.files
        for request in requests:
            if not request.array.layout.plain:
                damage += read_through_zarr(request, rows, self.path, files)
        if damage:
            raise self._error_of(damage, rows)
        return arrays

    def _checks_of(self, group: Group, array: str) -> ArrayChecks | None:
        if self.check_reads == "never":
            return None
        if group.path not in self._checks:
            names, every = list(group.shard_indexes), self.check_reads == "every"
            fetch = None if self._mirror is None else self._mirror.fetch
            checksums = RowChecksums(self.path, group.path, names, self.manifest, fetch)
            self._checks[group.path] = {
                name: ArrayChecks(checksums, name, len(self), group.commits, every) for name in names
            }
        return self._checks[group.path][array]

    def _error_of(self, damage: list[Damage], rows: npt.NDArray[np.int64]) -> StoreError:
        """Return the error that describes damaged samples: file, sample, key, and what to do."""
        array, row, what = damage[0].request.array, int(rows[damage[0].place]), damage[0].what
        try:
            key = self.samples.column("key")[row].as_py()
        except StoreError:
            key = "the sample index is damaged, too"
        path = array.shard_path(row // array.layout.shard_size) if array.layout.plain else array.layout.path
        more = f" (and {len(damage) - 1:,} more of this batch)" if len(damage) > 1 else ""
        remedy = f"run 'repa-pipe store repair --store {self.location}' to encode its shard again"
        if self.location.startswith(("http", "hf")):
            remedy = "replace the files on the server by those of an intact copy"
        elif not array.layout.plain:
            remedy = "restore the array, which another program rewrote, or set check_reads to 'never' if it was edited"
        return StoreError(f"{self.location}/{path.relative_to(self.path)}: sample {row} ({key}) {what}{more}: {remedy}")

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

    def _require_committed(self, group: Group, rows: npt.NDArray[np.int64]) -> None:
        for shard in np.unique(rows // self.manifest.shard_size).tolist():
            if shard not in group.commits:
                raise StoreError(
                    f"{self.location}: shard {shard} of {group.path} is not complete: "
                    "re-run 'repa-pipe encode' to complete it"
                )
            bad = {entry.index: entry for entry in group.commits.quarantined_of(shard)}
            for row in set(bad) & set(rows.tolist()) if bad else ():
                raise StoreError(
                    f"{self.location}: sample {row} ({bad[row].key}) is quarantined: {bad[row].reason}; "
                    "use indices from valid_indices()"
                )


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Selection:
    """A view of some samples of a store, made by `Store.select`. `AlignmentDataset` accepts it in place of a store.

    `selection[0]` is its first sample, in the form that `store[i]` has; `selection[:8]` and other indices count within
    the selection. `store.read(group_names, selection)` reads all of its samples.

    Attributes:
        store: the store.
        rows: the samples, as a set.
    """

    store: Store
    rows: RowSet

    @property
    def indices(self) -> npt.NDArray[np.int64]:
        """The samples, ascending int64 `[n]`."""
        return np.asarray(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return f"<Selection: {len(self)} of {self.store!r}>"

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        """Return `indices`, so that a selection can be used where indices are expected."""
        return np.array(self.indices, dtype=dtype, copy=copy)

    def __getitem__(self, item: int | Indices) -> Sample:
        """Return samples by their positions in the selection; see `Store.__getitem__`."""
        single = as_single(item)
        if single is None:
            return self.store[self.rows.at(as_rows(item, len(self)))]
        return self.store[int(self.rows.at(as_rows([single], len(self)))[0])]

    def __iter__(self) -> Iterator[Sample]:
        """Yield the samples of the selection that are not quarantined in a complete group."""
        return self.store._valid_samples(self.indices)

    @property
    def digest(self) -> str:
        """SHA-256 of `indices`: equal selections of equal stores have equal digests."""
        return self.rows.digest


def open_store(path: str | Path, cache: str | Path | None = None, check_reads: CheckReads = FIRST) -> Store:
    """Open a store for reading.

    Args:
        path: a folder, which may start with `~`, or a URL (s3://, gs://, az://, http://, https://, or
            hf://datasets/USER/NAME[@REVISION], which is read at the commit that the revision has now).
        cache: folder that keeps the samples read from a URL. None: samples are fetched every time.
        check_reads: which samples are compared with their checksums when they are read. `first`: when this process
            reads them for the first time, and a random 1/64 of later reads; `every`: in every read; `never`.

    Raises:
        StoreError: there is no store at `path`.
        ConfigError: `check_reads` has another value.
    """
    if check_reads not in get_args(CheckReads):
        raise ConfigError(f"check_reads is {check_reads!r}: expected {', '.join(get_args(CheckReads))}")
    if not is_url(path):
        if re.match(r"[a-z][a-z0-9]+:/[^/]", str(path)):
            raise StoreError(f"no store at {path}: a URL loses a slash in a pathlib.Path; pass it as a string")
        return Store(local_folder(path), check_reads=check_reads)
    location = pinned(str(path)) if is_hub(path) else str(path)
    mirror = Mirror(location, None if cache is None else Path(cache))
    return Store(mirror.folder, mirror, check_reads)
