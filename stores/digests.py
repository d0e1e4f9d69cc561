"""Checksums of what a store says about itself: its attributes, the metadata of its arrays, labels and sample index.

Attributes such as `scale`, the recipe of a codec, a shape or a class name change numbers as much as samples do. Their
checksums are attributes of their own, next to those that programs of earlier versions read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import StoreError
from .checksum import crc32c_bytes
from .layout import LABEL, SAMPLES_FILE
from .manifest import RESTORE, FileRecord, record_checksum

ROOT_DIGEST = "repa_pipe_digest"
GROUP_DIGEST = "repa_pipe_crc32c"
LABELS_FILE = f"{LABEL}/c/0"
RECORDED_FILES = (SAMPLES_FILE, LABELS_FILE)

# The fields of an array's zarr.json that decide which numbers are read; names of dimensions and attributes do not.
_ARRAY_FIELDS = ("shape", "data_type", "chunk_grid", "chunk_key_encoding", "fill_value", "codecs")


@dataclass(frozen=True, kw_only=True, slots=True)
class RootDigest:
    """Size and checksum of the files that are written once, and the checksum of these and the root attributes."""

    files: dict[str, FileRecord]
    crc32c: int


def root_checksum(attributes: Mapping[str, Any], files: Mapping[str, FileRecord]) -> int:
    """Return the checksum of the root attributes and of the records of files."""
    return record_checksum({"attributes": attributes, "files": files})


def group_checksum(attributes: Mapping[str, Any], arrays: Mapping[str, Mapping[str, Any]]) -> int:
    """Return the checksum of a group.

    Args:
        attributes: those of the group, without its checksum.
        arrays: zarr.json by name, in the order of the columns of `crc32c`.
    """
    described = [[name, {field: meta.get(field) for field in _ARRAY_FIELDS}] for name, meta in arrays.items()]
    return record_checksum({"attributes": attributes, "arrays": described})


def file_record(data: bytes) -> FileRecord:
    """Return size and checksum of a file's contents."""
    return {"bytes": len(data), "crc32c": crc32c_bytes(data)}


def read_recorded(path: Path, record: FileRecord | None) -> bytes:
    """Read a file that is written once; raise StoreError if it is missing or is not as recorded.

    Args:
        path: the file.
        record: its size and checksum; None in stores of earlier versions.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise StoreError(f"{path} cannot be read ({error.strerror}): {RESTORE}") from error
    if record is not None and file_record(data) != record:
        raise StoreError(f"{path} fails its checksum ({len(data):,} bytes, recorded {record['bytes']:,}): {RESTORE}")
    return data
