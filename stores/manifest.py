"""What a store says of itself: root attributes, sample index, shard commits.

`samples.parquet` is written once, with the store, and never again: no reader meets a half-rewritten index. What
becomes known later (that an image was broken, what its bytes were) stands in the commit record of its shard.
"""

from __future__ import annotations

import base64
import datetime
import json
import os
import socket
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import StoreError
from .checksum import crc32c_bytes
from .files import atomic_write_bytes, write_json
from .layout import FORMAT_VERSION, QUARANTINE_FILE, ROOT_ATTRIBUTE, SAMPLES_FILE, commit_file


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """The root attributes: which images, cropped how, in shards of which size."""

    format_version: int = FORMAT_VERSION
    num_samples: int
    resolution: int
    crop: str
    shard_size: int
    index_digest: str
    class_names: tuple[str, ...]
    source: dict[str, Any]  # what the source says of itself; informative

    def as_attributes(self) -> dict[str, Any]:
        """JSON form, as it stands under `repa_pipe` in the root's zarr.json."""
        return {ROOT_ATTRIBUTE: asdict(self) | {"class_names": list(self.class_names)}}

    @classmethod
    def from_attributes(cls, attributes: dict[str, Any], where: Path) -> Manifest:
        """Read the root attributes; StoreError when the folder is no store of ours or of a later format."""
        found = attributes.get(ROOT_ATTRIBUTE)
        if not isinstance(found, dict):
            raise StoreError(f"{where} is a zarr group but no repa-pipe store: attribute '{ROOT_ATTRIBUTE}' is absent")
        if found.get("format_version") != FORMAT_VERSION:
            raise StoreError(
                f"{where} has store format {found.get('format_version')}, this repa-pipe reads format "
                f"{FORMAT_VERSION}: install a repa-pipe that reads it"
            )
        try:
            return cls(**found | {"class_names": tuple(found["class_names"])})
        except (KeyError, TypeError) as error:
            raise StoreError(
                f"{where / 'zarr.json'} lacks or has unknown fields ({error}): the store is damaged"
            ) from error


@dataclass(frozen=True, kw_only=True, slots=True)
class Quarantined:
    """One image that could not be encoded."""

    index: int
    key: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Commit:
    """The record that makes a shard of a group complete. It is written last, after its files are on disk."""

    group: str
    shard: int
    num_samples: int
    files: dict[str, dict[str, int]]  # path below the group → {"bytes", "crc32c"}
    source_crc32c: str  # base64 of little-endian uint32, one for each image's source bytes
    quarantined: tuple[Quarantined, ...]
    writer: dict[str, Any]
    time: str
    token_cosine: dict[str, float] | None = None  # "mean", "least", "tokens": of how many it was measured

    @property
    def source_checksums(self) -> npt.NDArray[np.uint32]:
        """CRC-32C of the source bytes of every image, `[num_samples]` uint32; 0 where they could not be read."""
        return np.frombuffer(base64.b64decode(self.source_crc32c), dtype="<u4")


def new_commit(
    group: str,
    shard: int,
    files: dict[str, dict[str, int]],
    source_checksums: npt.NDArray[np.uint32],
    quarantined: tuple[Quarantined, ...],
    *,
    token_cosines: npt.NDArray[np.float32] | None = None,
) -> Commit:
    """A commit of this process, now. `token_cosines` `[n]`: of the tokens that the codec was tried on."""
    from .. import __version__

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
    )


def _summary(cosines: npt.NDArray[np.float32]) -> dict[str, float]:
    cosines = cosines.clip(max=1).astype(np.float64)  # float32's rounding may exceed 1
    return {"mean": round(cosines.mean(), 7), "least": round(cosines.min(), 7), "tokens": len(cosines)}


def write_commit(store: Path, commit: Commit) -> None:
    """Write a commit record atomically, with a checksum of itself."""
    record = asdict(commit)
    write_json(store / commit_file(commit.group, commit.shard), record | {"crc32c": record_checksum(record)})


def record_checksum(record: dict[str, Any]) -> int:
    """CRC-32C of a record without its checksum, as JSON with sorted keys and no spaces."""
    return crc32c_bytes(json.dumps(record, sort_keys=True, separators=(",", ":")).encode())


def read_commit(store: Path, group: str, shard: int) -> Commit | None:
    """The commit of a shard, or None when it has none; StoreError when the record is damaged."""
    path = store / commit_file(group, shard)
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise StoreError(
            f"{path} is no valid JSON ({error}): delete it and run 'repa-pipe encode' again to redo the shard"
        ) from error
    if not isinstance(found, dict) or found.pop("crc32c", None) != record_checksum(found):
        raise StoreError(f"{path} fails its checksum: delete it and run 'repa-pipe encode' again to redo the shard")
    try:
        found["quarantined"] = tuple(Quarantined(**entry) for entry in found["quarantined"])
        return Commit(**found)
    except (KeyError, TypeError) as error:
        raise StoreError(
            f"{path} has other fields than expected ({error}): delete it and run 'repa-pipe encode' again"
        ) from error


def committed_shards(store: Path, group: str) -> set[int]:
    """Shards of a group that have a commit record. One listing, no file is opened."""
    folder = (store / commit_file(group, 0)).parent
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return set()
    return {int(name[:-5]) for name in names if name.endswith(".json") and name[:-5].isdigit()}


def write_samples(store: Path, table: pa.Table) -> None:
    """Write the sample index: row i is sample i."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    atomic_write_bytes(store / SAMPLES_FILE, sink.getvalue().to_pybytes())


def read_samples(store: Path) -> pa.Table:
    """The sample index: columns key, label (int32), num_bytes (int64), where."""
    try:
        return pq.read_table(store / SAMPLES_FILE)
    except (FileNotFoundError, pa.ArrowInvalid) as error:
        raise StoreError(f"{store / SAMPLES_FILE} cannot be read ({error}): the store is damaged") from error


def write_quarantine(store: Path, quarantined: list[Quarantined]) -> None:
    """Write the list of images that could not be encoded."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist([asdict(entry) for entry in quarantined]), sink)
    atomic_write_bytes(store / QUARANTINE_FILE, sink.getvalue().to_pybytes())
