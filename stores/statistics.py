"""The statistics of a group's tokens as latents: one small file per group and way of averaging, with its provenance.

`statistics/<group>/<per>.safetensors` holds `mean` and `var`, float64, and as metadata the record of what they were
computed from, with a checksum of both.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from msgspec import Meta

from ..converter import parse_json, structure, unstructure
from ..errors import StoreError
from .checksum import crc32c_bytes
from .files import atomic_write_bytes, confined

if TYPE_CHECKING:
    from .store import Store

Per: TypeAlias = Literal["channel", "position", "all"]  # [C, 1, 1], [C, h, w], [1, 1, 1]
PERS: tuple[Per, ...] = ("channel", "position", "all")
Array: TypeAlias = npt.NDArray[np.float64]

_RECORD = "record"
_LARGEST = 1 << 28  # bytes of a file


@dataclass(frozen=True, kw_only=True, slots=True)
class StatisticsRecord:
    """Where statistics come from."""

    kind: Literal["exact", "imported"]  # population statistics of the stored tokens, or those of another program
    samples: Annotated[int, Meta(ge=0)]  # images; 0 if unknown
    shards: tuple[int, int] | None = None  # the first, and the one after the last; None for all, or unknown
    flipped: bool = False  # whether the flipped views were included
    fingerprint: int | None = None  # CRC-32C of the group's fingerprint; None: imported
    source: str | None = None  # name of the imported file
    source_crc32c: int | None = None
    note: str | None = None
    program: str  # version of repa-pipe
    time: str

    def describe(self) -> str:
        """Return a description in one line."""
        what = f"imported from {self.source}" if self.kind == "imported" else f"exact over {self.samples:,} images"
        parts = [what, *["with flips"] * self.flipped]
        if self.shards is not None:
            parts.append(f"shards {self.shards[0]}:{self.shards[1]}")
        return ", ".join([*parts, *([self.note] if self.note else [])])


@dataclass(frozen=True, slots=True)
class GroupStatistics:
    """Mean and variance of latents, shaped to broadcast against [C, h, w]."""

    mean: Array
    var: Array
    record: StatisticsRecord


def statistics_file(group: str, per: Per) -> str:
    """Return the path of a file of statistics relative to the store."""
    return f"statistics/{group}/{per}.safetensors"


def latents_shape(store: Store, group: str) -> tuple[int, int, int]:
    """Return the shape [C, h, w] of a group's tokens on their grid.

    Raises:
        StoreError: the tokens are not on a square grid.
    """
    attributes = store.group(group).attributes
    side = round(attributes["num_tokens"] ** 0.5)
    if side**2 != attributes["num_tokens"]:
        raise StoreError(f"{store.location}: the {attributes['num_tokens']} tokens of {group} are not a square grid")
    return attributes["width"], side, side


def shape_per(per: Per, shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return the shape of statistics for latents [C, h, w]."""
    return {"channel": (shape[0], 1, 1), "position": shape, "all": (1, 1, 1)}[per]


def write_statistics(store: Store, group: str, per: Per, found: GroupStatistics) -> None:
    """Write statistics into the store, atomically; those that were there are replaced."""
    from safetensors.numpy import save

    arrays = {"mean": np.ascontiguousarray(found.mean), "var": np.ascontiguousarray(found.var)}
    record = unstructure(found.record) | {"crc32c": _checksum(arrays)}
    name = statistics_file(group, per)
    atomic_write_bytes(confined(store.path, name), save(arrays, {_RECORD: json.dumps(record)}))
    store.upload_file(name)


def read_statistics(store: Store, group: str, per: Per) -> GroupStatistics | None:
    """Read statistics; None if there are none.

    Raises:
        StoreError: the file is damaged, or belongs to other tokens.
    """
    name = statistics_file(group, per)
    where = f"{store.location}/{name}"
    try:
        with open(store.open_file(name), "rb") as file:  # noqa: PTH123 - a descriptor
            size = os.fstat(file.fileno()).st_size
            data = file.read(_LARGEST + 1)
    except FileNotFoundError:
        return None
    expected = shape_per(per, latents_shape(store, group))
    try:
        arrays, record, checksum = _parsed(data, where)
        shapes = {key: arrays[key].shape if key in arrays else None for key in ("mean", "var")}
        if size > _LARGEST or any(shape != expected for shape in shapes.values()):
            raise StoreError(f"{where} has mean and var of shapes {list(shapes.values())}, expected {expected}")
        valid = np.isfinite(arrays["mean"]).all() and np.isfinite(arrays["var"]).all() and (arrays["var"] >= 0).all()
        if checksum != _checksum(arrays) or not valid:
            raise StoreError(f"{where} fails its checksum")
    except StoreError as error:
        raise StoreError(f"{error}: delete the file, and {_remedy(group, per)}") from error
    if record.kind == "exact" and record.fingerprint != fingerprint_checksum(store, group):
        raise StoreError(
            f"{where} was computed from tokens of another encoder or precision than {group} holds now: "
            f"{_remedy(group, per)}"
        )
    return GroupStatistics(arrays["mean"], arrays["var"], record)


def fingerprint_checksum(store: Store, group: str) -> int:
    """Return the CRC-32C of a group's fingerprint."""
    return crc32c_bytes(json.dumps(store.group(group).fingerprint, sort_keys=True).encode())


def _remedy(group: str, per: Per) -> str:
    return f"run 'repa-pipe store stats STORE --encoder {group.partition('/')[2]} --write' again, with --per {per}"


def _checksum(arrays: dict[str, Array]) -> int:
    return crc32c_bytes(arrays["mean"].tobytes() + arrays["var"].tobytes())


def _parsed(data: bytes, where: str) -> tuple[dict[str, Array], StatisticsRecord, object]:
    """Return the arrays, the record and its checksum; raise StoreError for anything else."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        arrays = {name: array.astype(np.float64, casting="safe") for name, array in load(data).items()}
        header = parse_json(data[8 : 8 + int.from_bytes(data[:8], "little")], where, StoreError)
        text = header["__metadata__"][_RECORD]
    except (SafetensorError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise StoreError(f"{where} is not a file of statistics") from error
    values = parse_json(text.encode(), where, StoreError)
    if not isinstance(values, dict):
        raise StoreError(f"{where}: the record is not a JSON object")
    checksum = values.pop("crc32c", None)
    return arrays, structure(values, StatisticsRecord, where, StoreError), checksum
