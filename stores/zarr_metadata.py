"""The zarr.json files of a store: the one module that parses them.

What they hold is untrusted: names, types, sizes and checksums are checked here, and errors name the file and the field.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..converter import read_json, structure
from ..errors import StoreError
from .digests import GROUP_DIGEST, ROOT_DIGEST, RootDigest, group_checksum, root_checksum
from .layout import CRC32C, MOMENTS, ROOT_ATTRIBUTE, ArraySpec
from .manifest import LARGEST, Manifest
from .names import check_name, check_path

METADATA_FILE = "zarr.json"
MAX_SAMPLE_BYTES = 1 << 32
CHANGED = (
    "restore it from a copy, or, if it was changed on purpose, run 'repa-pipe store verify STORE --accept-metadata' to "
    "record it as it is now"
)


@dataclass(frozen=True, slots=True)
class ArrayLayout:
    """The parts of an array's zarr.json that reading needs."""

    path: Path
    spec: ArraySpec
    shape: tuple[int, ...]
    shard_size: int
    plain: bool  # the uncompressed sharded form that repa-pipe writes; zarr-python reads any other form

    @property
    def dtype(self) -> np.dtype[Any]:
        """The numpy dtype of the array."""
        return np.dtype(self.spec.dtype)


@dataclass(frozen=True, slots=True)
class Root:
    """The root's zarr.json: the manifest, and what its digest covers; None in stores of earlier versions."""

    manifest: Manifest
    digest: RootDigest | None


@dataclass(frozen=True, slots=True)
class GroupMetadata:
    """The zarr.json files of a group and its arrays."""

    attributes: dict[str, Any]
    layouts: dict[str, ArrayLayout]
    has_digest: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class LatentsAttributes:
    """The attributes of a group of latents."""

    vae: str
    fingerprint: dict[str, Any]
    scale: tuple[float, ...]
    bias: tuple[float, ...]
    array: Literal["moments", "latents"] = "moments"  # versions that know only moments refuse groups that name another
    batch_size: int | None = None

    def __post_init__(self) -> None:
        for name, values in (("scale", self.scale), ("bias", self.bias)):
            if not values or not all(abs(value) <= LARGEST for value in values):
                raise StoreError(f"{name}: expected finite numbers, one per channel, found {list(values)!r:.80}")
        _require(all(self.scale), "scale", "expected numbers other than 0")
        _require(self.batch_size is None or self.batch_size > 0, "batch_size", "expected at least 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class FeaturesAttributes:
    """The attributes of a group of features."""

    encoder: str
    fingerprint: dict[str, Any]
    num_tokens: int
    width: int
    codec: dict[str, Any]
    batch_size: int | None = None

    def __post_init__(self) -> None:
        for name in ("num_tokens", "width", "batch_size"):
            value = getattr(self, name)
            _require(value is None or value > 0, name, f"expected at least 1, found {value}")
        _require(isinstance(self.codec.get("name"), str), "codec", "expected the name of a codec under 'name'")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Grid:
    chunk_shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Extension:
    name: str
    configuration: dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Array:
    """The fields of an array's zarr.json that are read."""

    shape: tuple[int, ...]
    data_type: str
    chunk_grid: _Extension
    chunk_key_encoding: _Extension
    codecs: tuple[Any, ...]
    fill_value: Any
    attributes: dict[str, Any]

    def __post_init__(self) -> None:
        sizes = len(self.shape) > 1 and all(size > 0 for size in self.shape)
        _require(sizes, "shape", f"expected at least two positive sizes, found {list(self.shape)!r:.80}")


def read_node(folder: Path, kind: Literal["group", "array"]) -> dict[str, Any]:
    """Return the zarr.json in a folder, which must be that of a group or of an array.

    Raises:
        StoreError: the file is missing, is not JSON, or is another node's.
    """
    path = folder / METADATA_FILE
    meta = read_json(path, StoreError)
    for name, expected in (("zarr_format", 3), ("node_type", kind)):
        if meta.get(name) != expected:
            raise StoreError(f"{path}: {name}: expected {expected!r}, found {meta.get(name)!r:.80}")
    if not isinstance(meta.setdefault("attributes", {}), dict):
        raise StoreError(f"{path}: attributes: expected object, found {meta['attributes']!r:.80}")
    return meta


def read_root(store: Path, *, verified: bool = True) -> Root:
    """Read the root's zarr.json of the store at `store`.

    Args:
        store: local folder of the store.
        verified: compare it with its digest.

    Raises:
        StoreError: there is no store, its attributes are damaged, or they do not match their digest.
    """
    path = store / METADATA_FILE
    if not path.exists():
        raise StoreError(f"no store at {store}: create one with 'repa-pipe encode --store {store} …'")
    attributes = read_node(store, "group")["attributes"]
    _require_spelling(attributes, (ROOT_ATTRIBUTE, ROOT_DIGEST), str(path))
    manifest = Manifest.from_attributes(attributes, store)
    if not verified or ROOT_DIGEST not in attributes:
        return Root(manifest, None)
    digest = structure(attributes[ROOT_DIGEST], RootDigest, f"{path}: {ROOT_DIGEST}", StoreError)
    if digest.crc32c != root_checksum(attributes[ROOT_ATTRIBUTE], digest.files):
        raise StoreError(f"{path} fails its checksum: {CHANGED}")
    return Root(manifest, digest)


def read_group(store: Path, group: str, manifest: Manifest, *, verified: bool = True) -> GroupMetadata:
    """Read the zarr.json files of a group and its arrays.

    Args:
        store: local folder of the store.
        group: path of the group.
        manifest: root attributes of the store.
        verified: compare them with their digest.

    Raises:
        StoreError: a file is missing or damaged, does not match the digest, or has other samples than the store.
    """
    folder = store / check_path(group, str(store), 2)
    attributes = read_node(folder, "group")["attributes"]
    recorded = attributes.pop(GROUP_DIGEST, None)
    names = _array_names(folder)
    arrays = {name: read_node(folder / name, "array") for name in (*names, CRC32C)}
    path = folder / METADATA_FILE
    if verified and recorded is not None and recorded != group_checksum(attributes, arrays):
        raise StoreError(f"{path} or that of an array of the group fails its checksum: {CHANGED}")
    kind: type[Any] = LatentsAttributes if group.startswith("latents/") else FeaturesAttributes
    structure(attributes, kind, f"{path}: attributes", StoreError)
    layouts = {name: _layout(folder / name, arrays[name], manifest) for name in names}
    _require_row_checksums(folder / CRC32C, arrays[CRC32C], manifest, len(names))
    if kind is LatentsAttributes:
        _require_latents(attributes, layouts, path)
    return GroupMetadata(attributes, layouts, recorded is not None)


def _require_latents(attributes: dict[str, Any], layouts: Mapping[str, ArrayLayout], path: Path) -> None:
    """Raise StoreError unless the array of a group of latents exists, is square, and has a scale per channel."""
    array = attributes.get("array", MOMENTS)
    if array not in layouts:
        raise StoreError(f"{path}: expected an array {array}, found {', '.join(layouts)}")
    found, parts = layouts[array], 2 if array == MOMENTS else 1
    shape = found.spec.sample_shape
    if len(shape) != 3 or shape[0] % parts:
        expected = "[N, 2C, h, w]" if array == MOMENTS else "[N, C, h, w]"
        raise StoreError(f"{found.path / METADATA_FILE}: shape: expected {expected}, found {list(found.shape)}")
    channels = shape[0] // parts
    for name in ("scale", "bias"):
        if len(attributes[name]) != channels:
            raise StoreError(
                f"{path}: {name}: expected {channels} numbers, one per channel, found {attributes[name]!r:.80}"
            )


def _array_names(folder: Path) -> list[str]:
    """Return the names of the arrays with samples, in the order of the columns of `crc32c`."""
    path = folder / CRC32C
    where = str(path / METADATA_FILE)
    names = read_node(path, "array")["attributes"].get("arrays")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise StoreError(f"{where}: attributes: arrays: expected names of arrays, found {names!r:.80}")
    if len(set(names)) < len(names) or CRC32C in names:
        raise StoreError(f"{where}: attributes: arrays: expected different names, found {names!r:.80}")
    return [check_name(name, where) for name in names]


def _layout(folder: Path, meta: dict[str, Any], manifest: Manifest) -> ArrayLayout:
    path = folder / METADATA_FILE
    array = _array_of(meta, path)
    chunks = _chunk_shape(array, path)
    spec = ArraySpec(name=folder.name, sample_shape=array.shape[1:], dtype=array.data_type)
    if array.shape[:1] != (manifest.num_samples,):
        raise StoreError(f"{path}: shape: expected {manifest.num_samples:,} samples, found {list(array.shape)}")
    if not 0 < spec.sample_bytes <= MAX_SAMPLE_BYTES:
        raise StoreError(f"{path}: shape: expected samples of at most 4 GiB, found {list(array.shape)!r:.80}")
    plain = _is_plain(array, chunks)
    if plain and chunks[0] != manifest.shard_size:
        raise StoreError(f"{path}: chunk_grid: expected shards of {manifest.shard_size:,} samples, found {chunks[0]:,}")
    return ArrayLayout(folder, spec, array.shape, chunks[0], plain)


def _array_of(meta: Mapping[str, Any], path: Path) -> _Array:
    known = {field.name: meta[field.name] for field in fields(_Array) if field.name in meta}
    array = structure(known, _Array, str(path), StoreError)
    if array.data_type not in ArraySpec.ITEM_BYTES:
        raise StoreError(
            f"{path}: data_type: expected one of {', '.join(ArraySpec.ITEM_BYTES)}, found {array.data_type!r:.80}"
        )
    return array


def _chunk_shape(array: _Array, path: Path) -> tuple[int, ...]:
    where = f"{path}: chunk_grid: configuration"
    chunks = structure(array.chunk_grid.configuration, _Grid, where, StoreError).chunk_shape
    if len(chunks) != len(array.shape) or not all(size > 0 for size in chunks):
        raise StoreError(f"{where}: chunk_shape: expected {len(array.shape)} positive sizes, found {list(chunks)}")
    return chunks


def _is_plain(array: _Array, chunks: tuple[int, ...]) -> bool:
    """Return whether an array has the form of docs/store-format.md, which `reader` reads without zarr-python."""
    inner = {"chunk_shape": [1, *array.shape[1:]], "codecs": [{"name": "bytes"}], "index_location": "end"}
    index = {"index_codecs": [{"name": "bytes"}, {"name": "crc32c"}]}
    expected = [{"name": "sharding_indexed", "configuration": inner | index}]
    return (
        _little_endian(list(array.codecs)) == expected
        and chunks[1:] == array.shape[1:]
        and array.chunk_grid.name == "regular"
        and array.chunk_key_encoding == _Extension(name="default", configuration={"separator": "/"})
    )


def _little_endian(codecs: Any) -> Any:
    """Return codecs without what the format leaves open: that `bytes` is little endian, and the place of the index."""
    if isinstance(codecs, list):
        return [_little_endian(codec) for codec in codecs]
    if isinstance(codecs, dict) and codecs.get("name") == "bytes":
        return {"name": "bytes"} if codecs.get("configuration") in (None, {}, {"endian": "little"}) else codecs
    if isinstance(codecs, dict) and isinstance(codecs.get("configuration"), dict):
        values = {name: _little_endian(value) for name, value in codecs["configuration"].items()}
        if codecs.get("name") == "sharding_indexed":
            values.setdefault("index_location", "end")
        return codecs | {"configuration": values}
    return codecs


def _require_row_checksums(folder: Path, meta: dict[str, Any], manifest: Manifest, arrays: int) -> None:
    expected = [manifest.num_samples, arrays]
    if meta.get("shape") != expected or meta.get("data_type") != "uint32":
        raise StoreError(
            f"{folder / METADATA_FILE}: expected shape {expected} and data_type uint32, found "
            f"{meta.get('shape')!r:.80} and {meta.get('data_type')!r:.80}"
        )


def _require_spelling(attributes: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    """Raise StoreError for an attribute that is nearly one of ours. Other programs may have attributes of their own."""
    for name in attributes:
        if name not in known and (near := difflib.get_close_matches(name, known, n=1, cutoff=0.8)):
            raise StoreError(f"{where}: attributes: unknown key {name!r:.80}; expected {near[0]}")


def _require(condition: bool, name: str, expected: str) -> None:
    if not condition:
        raise StoreError(f"{name}: {expected}")
