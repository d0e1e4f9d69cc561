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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from ..converter import structure, unstructure
from ..errors import StoreError
from ..version import __version__
from .checksum import crc32c_bytes
from .files import atomic_write_bytes, write_json
from .latent_statistics import LatentsSummary
from .layout import FORMAT_VERSION, QUARANTINE_FILE, ROOT_ATTRIBUTE, SAMPLES_FILE, commit_file

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
                f"{path} has store format {found.get('format_version')}, expected {FORMAT_VERSION}: install a version "
                "of repa-pipe that reads this format"
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

    @property
    def source_checksums(self) -> npt.NDArray[np.uint32]:
        """CRC-32C of the encoded bytes of every image, `[num_samples]` uint32; 0 if they could not be read."""
        return np.frombuffer(base64.b64decode(self.source_crc32c), dtype="<u4")


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
    write_json(store / commit_file(commit.group, commit.shard), record | {"crc32c": record_checksum(record)})


def record_checksum(record: dict[str, Any]) -> int:
    """Return the CRC-32C of a record without its checksum, as JSON with sorted keys and no spaces."""
    return crc32c_bytes(json.dumps(record, sort_keys=True, separators=(",", ":")).encode())


def read_commit(store: Path, group: str, shard: int) -> Commit | None:
    """Read the commit record of a shard. Return None if there is none.

    Raises:
        StoreError: the record is damaged.
    """
    path = store / commit_file(group, shard)
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise StoreError(f"{path} is not valid JSON ({error}): {_REMEDY}") from error
    if not isinstance(found, dict) or found.pop("crc32c", None) != record_checksum(found):
        raise StoreError(f"{path} fails its checksum: {_REMEDY}")
    try:
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


def read_samples(store: Path) -> pa.Table:
    """Read the sample index: columns key, label (int32), num_bytes (int64), where."""
    try:
        return pq.read_table(store / SAMPLES_FILE)
    except (FileNotFoundError, pa.ArrowInvalid) as error:
        raise StoreError(f"{store / SAMPLES_FILE} cannot be read ({error}): the store is damaged") from error


def write_quarantine(store: Path, quarantined: list[Quarantined]) -> None:
    """Write the list of images that could not be encoded."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist([asdict(entry) for entry in quarantined]), sink)
    atomic_write_bytes(store / QUARANTINE_FILE, sink.getvalue().to_pybytes())
