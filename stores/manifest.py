"""Metadata of a store: root attributes, sample index, commit records.

`samples.parquet` is written once, when the store is created, so no reader ever sees a partially rewritten index. Facts
that become known later (that an image is broken, the checksum of its bytes) are in the commit record of its shard.
"""

from __future__ import annotations

import base64
import datetime
import json
import os
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from ..converter import read_json, structure, unstructure
from ..errors import StoreError
from ..parquet import Column, read_parquet
from ..version import __version__
from .checksum import crc32c_bytes
from .files import atomic_write_bytes, confined, write_json
from .latent_statistics import LatentsSummary
from .layout import FORMAT_VERSION, MAX_SHARDS, QUARANTINE_FILE, ROOT_ATTRIBUTE, SAMPLES_FILE, commit_file, num_shards
from .names import is_shard_file

_SAMPLES_COLUMNS = {
    "key": Column(kind="string"),
    "label": Column(kind="int32"),
    "num_bytes": Column(kind="int64"),
    "where": Column(kind="string"),
}
LARGEST = 3.4e38  # of float32
RESTORE = "restore it from a copy of the store"
_REMEDY = "delete it and re-run 'repa-pipe encode' to encode the shard again"


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """The root attributes: which images, how they were cropped, samples per shard."""

    format_version: int = FORMAT_VERSION
    num_samples: int
    resolution: int
    crop: str
    shard_size: int
    index_digest: str
    class_names: tuple[str, ...]
    source: dict[str, Any]  # `Source.provenance()`: kind, path, options, skipped files
    pixels: str | None = None  # `layout.FULL_RANGE`; None if gray levels with more than 8 bits were cut at 255

    def __post_init__(self) -> None:
        for name in ("num_samples", "resolution", "shard_size"):
            if getattr(self, name) < 1:
                raise StoreError(f"{name}: expected at least 1, found {getattr(self, name)}")
        if num_shards(self.num_samples, self.shard_size) > MAX_SHARDS or self.shard_size > MAX_SHARDS:
            raise StoreError(
                f"num_samples and shard_size: expected at most {MAX_SHARDS:,} shards and samples per shard, found "
                f"{self.num_samples:.6g} samples in shards of {self.shard_size:.6g}"
            )
        for name in ("kind", "path"):
            if not isinstance(self.source.get(name), str):
                raise StoreError(f"source: {name}: expected str, found {self.source.get(name)!r:.80}")
        for name, kind in (("options", dict), ("skipped", list)):
            if not isinstance(self.source.get(name, kind()), kind):
                raise StoreError(f"source: {name}: expected {kind.__name__}, found {self.source[name]!r:.80}")

    def as_attributes(self) -> dict[str, Any]:
        """Return the attributes of the root's zarr.json: these fields under `repa_pipe`."""
        return {ROOT_ATTRIBUTE: unstructure(self)}

    @classmethod
    def from_attributes(cls, attributes: dict[str, Any], path: Path) -> Manifest:
        """Read the root attributes of the store at `path`.

        Raises:
            StoreError: the attributes are not those of a store, are damaged, or have another format version.
        """
        found = attributes.get(ROOT_ATTRIBUTE)
        if not isinstance(found, dict):
            raise StoreError(
                f"{path} is a zarr group but not a repa-pipe store: it has no attribute '{ROOT_ATTRIBUTE}'"
            )
        if found.get("format_version") != FORMAT_VERSION:
            raise StoreError(
                f"{path} has store format {found.get('format_version')!r:.80}, expected {FORMAT_VERSION}: install a "
                "version of repa-pipe that reads this format"
            )
        try:
            return structure(found, cls, str(path / "zarr.json"), StoreError)
        except StoreError as error:
            raise StoreError(f"{error}; the store is damaged") from error


@dataclass(frozen=True, kw_only=True, slots=True)
class Quarantined:
    """One image that could not be encoded."""

    index: int
    key: str
    reason: str


class FileRecord(TypedDict):
    """Size and CRC-32C of one file of a shard."""

    bytes: int
    crc32c: int


class TokenCosine(TypedDict):
    """Cosine between the encoder's tokens and the tokens that the codec restores, over `tokens` tokens of a shard."""

    mean: float
    least: float
    tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Commit:
    """The record that makes a shard of a group complete. It is written last, after the shard's files are on disk."""

    group: str
    shard: int
    num_samples: int
    files: dict[str, FileRecord]  # by path relative to the group
    source_crc32c: str  # base64 of little-endian uint32, one per image: CRC-32C of its encoded bytes
    quarantined: tuple[Quarantined, ...]
    writer: dict[str, Any]
    time: str
    token_cosine: TokenCosine | None = None
    latents: LatentsSummary | None = None
    float32_samples: tuple[int, ...] = ()  # these overflowed in half precision and were encoded in float32

    def __post_init__(self) -> None:
        for name, record in self.files.items():
            if not is_shard_file(name):
                raise StoreError(f"files: {name[:60]!r} is not the path of a file of a shard")
            if record["bytes"] < 0:
                raise StoreError(f"files: {name}: bytes: expected at least 0, found {record['bytes']}")

    @property
    def source_checksums(self) -> npt.NDArray[np.uint32]:
        """CRC-32C of the encoded bytes of every image, `[num_samples]` uint32; 0 if they could not be read."""
        try:
            return np.frombuffer(base64.b64decode(self.source_crc32c), dtype="<u4")
        except ValueError as error:
            raise StoreError(f"source_crc32c of shard {self.shard} of {self.group}: {error}: {_REMEDY}") from error

    def require_fitting(
        self, group: str, shard: int, samples: range, sizes: Mapping[str, int], channels: int | None
    ) -> None:
        """Raise StoreError unless the record describes this shard.

        Args:
            group: path of the group, for errors. A group that was renamed can be read; `verify` reports it.
            shard: number of the shard.
            samples: the samples of the shard.
            sizes: bytes of its files, by path relative to the group. More files may be recorded.
            channels: channels of the latents whose statistics are recorded; None if there are none.
        """
        listed = [*(entry.index for entry in self.quarantined), *self.float32_samples]
        pairs = [
            ("shard", self.shard, shard),
            ("num_samples", self.num_samples, len(samples)),
            ("source_crc32c", len(self.source_crc32c), 4 * -(-4 * len(samples) // 3)),  # characters of base64
            ("samples", [index for index in listed if index not in samples][:1], []),
            *((name, self.files[name]["bytes"] if name in self.files else None, size) for name, size in sizes.items()),
        ]
        if self.latents is not None:
            mean, std, images = self.latents["mean"], self.latents["std"], self.latents["images"]
            pairs.append(("latents", (len(mean), len(std)), (channels, channels)))
            pairs.append(("latents", [value for value in (*mean, *std) if not abs(value) <= LARGEST][:1], []))
            pairs.append(("images of latents", images, min(max(1, images), len(samples))))
        if self.token_cosine is not None:
            tokens = self.token_cosine["tokens"]
            pairs.append(("tokens of token_cosine", tokens, max(1, tokens)))
        for name, value, expected in pairs:
            if value != expected:
                raise StoreError(
                    f"{commit_file(group, shard)}: {name}: expected {expected!r}, found {value!r:.80}; {_REMEDY}"
                )


def new_commit(
    group: str,
    shard: int,
    files: dict[str, FileRecord],
    source_checksums: npt.NDArray[np.uint32],
    quarantined: tuple[Quarantined, ...],
    *,
    token_cosines: npt.NDArray[np.float32] | None = None,
    latents: LatentsSummary | None = None,
    float32_samples: tuple[int, ...] = (),
) -> Commit:
    """Create a commit record with this process as the writer and the current time.

    Args:
        group: path of the group.
        shard: number of the shard.
        files: size and checksum by path relative to the group.
        source_checksums: CRC-32C of the encoded bytes of every image, `[num_samples]`.
        quarantined: images of the shard that could not be decoded.
        token_cosines: `[n]`, of the tokens on which the codec was measured.
        latents: statistics of the latents, if the group holds moments.
        float32_samples: samples that were encoded in float32 because they overflowed in the group's precision.
    """
    return Commit(
        group=group,
        shard=shard,
        num_samples=len(source_checksums),
        files=files,
        source_crc32c=base64.b64encode(source_checksums.astype("<u4").tobytes()).decode(),
        quarantined=quarantined,
        writer={"host": socket.gethostname(), "pid": os.getpid(), "repa_pipe": __version__},
        time=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        token_cosine=None if token_cosines is None or not len(token_cosines) else _summary(token_cosines),
        latents=latents,
        float32_samples=float32_samples,
    )


def _summary(cosines: npt.NDArray[np.float32]) -> TokenCosine:
    cosines = cosines.clip(max=1).astype(np.float64)  # rounding in float32 can exceed 1
    return {"mean": round(cosines.mean(), 7), "least": round(cosines.min(), 7), "tokens": len(cosines)}


def write_commit(store: Path, commit: Commit) -> None:
    """Write a commit record atomically, including a checksum of the record itself."""
    record = unstructure(commit)
    write_json(confined(store, commit_file(commit.group, commit.shard)), record | {"crc32c": record_checksum(record)})


def record_checksum(record: dict[str, Any]) -> int:
    """Return the CRC-32C of a record without its checksum, as JSON with sorted keys and no spaces."""
    return crc32c_bytes(json.dumps(record, sort_keys=True, separators=(",", ":")).encode())


def read_commit(store: Path, group: str, shard: int) -> Commit | None:
    """Read the commit record of a shard. Return None if there is none.

    Raises:
        StoreError: the record is damaged.
    """
    path = store / commit_file(group, shard)
    if not path.exists():
        return None
    try:
        found = read_json(path, StoreError)
        if found.pop("crc32c", None) != record_checksum(found):
            raise StoreError(f"{path} fails its checksum")
        return structure(found, Commit, str(path), StoreError)
    except StoreError as error:
        raise StoreError(f"{error}; {_REMEDY}") from error


def committed_shards(store: Path, group: str) -> set[int]:
    """Return the shards of a group that have a commit record. Lists one folder and opens no files."""
    folder = (store / commit_file(group, 0)).parent
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return set()
    return {int(name[:-5]) for name in names if name.endswith(".json") and name[:-5].isdigit()}


def write_samples(store: Path, table: pa.Table) -> None:
    """Write the sample index; row i is sample i."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    atomic_write_bytes(store / SAMPLES_FILE, sink.getvalue().to_pybytes())


def parse_samples(data: bytes, manifest: Manifest, path: Path) -> pa.Table:
    """Return the sample index: columns key, label (int32), num_bytes (int64), where.

    Args:
        data: contents of the parquet file.
        manifest: root attributes of the store.
        path: the file, for errors.

    Raises:
        StoreError: the file is damaged, or does not have these columns with one row per sample.
    """
    table = read_parquet(
        path,
        "a sample index",
        _SAMPLES_COLUMNS,
        remedy=RESTORE,
        error=StoreError,
        data=data,
        num_rows=manifest.num_samples,
    )
    require_labels(table["label"].to_numpy(), manifest, path)
    return table.select(list(_SAMPLES_COLUMNS))


def require_labels(labels: npt.NDArray[np.int32], manifest: Manifest, path: Path) -> None:
    """Raise StoreError, naming `path`, unless every label `[N]` is that of a class."""
    least, most, classes = int(labels.min()), int(labels.max()), len(manifest.class_names)
    if least < 0 or most >= classes:
        raise StoreError(f"{path} has labels {least} to {most}, expected 0 to {classes - 1}: {RESTORE}")


def write_quarantine(store: Path, quarantined: list[Quarantined]) -> None:
    """Write the list of images that could not be encoded."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist([asdict(entry) for entry in quarantined]), sink)
    atomic_write_bytes(store / QUARANTINE_FILE, sink.getvalue().to_pybytes())
