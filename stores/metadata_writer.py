"""Writes the zarr.json files of a store, their digests, and the copy of all of them in the root.

Readers never need the copy: the zarr.json of a node counts. A writer that is killed between creating a group and
copying leaves an old copy, which `open_store` reports and the next writer replaces.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..converter import read_json, unstructure
from ..errors import StoreError
from .digests import (
    GROUP_DIGEST,
    RECORDED_FILES,
    ROOT_DIGEST,
    RootDigest,
    file_record,
    group_checksum,
    read_recorded,
    root_checksum,
)
from .files import TEMPORARY, confined, write_json
from .layout import CRC32C, LABEL, ROOT_ATTRIBUTE, GroupSpec, dimension_names
from .manifest import Manifest
from .names import check_path
from .zarr_metadata import METADATA_FILE, read_group, read_node, read_root

COPY = "consolidated_metadata"


def create_root_node(folder: Path, manifest: Manifest, labels: npt.NDArray[np.int32]) -> None:
    """Write the root group and the array `label` into a new folder."""
    import zarr

    root = zarr.create_group(store=str(folder), attributes=manifest.as_attributes())
    array = root.create_array(
        LABEL,
        shape=labels.shape,
        dtype="int32",
        chunks=labels.shape,
        compressors=None,
        dimension_names=("sample",),
        config={"write_empty_chunks": True},  # otherwise zarr omits a chunk in which all labels are 0
    )
    array[:] = labels


def create_parent_node(folder: Path) -> None:
    """Write the group that holds all groups of a kind, unless it exists."""
    if not (folder / METADATA_FILE).exists():
        write_json(folder / METADATA_FILE, {"attributes": {}, "zarr_format": 3, "node_type": "group"})


def create_group_node(folder: Path, manifest: Manifest, spec: GroupSpec) -> None:
    """Write the metadata of a group, its arrays and their checksums into a new folder."""
    import zarr

    group = zarr.create_group(store=str(folder), attributes=spec.attributes)
    for array in spec.arrays:
        group.create_array(
            array.name,
            shape=(manifest.num_samples, *array.sample_shape),
            dtype=array.dtype,
            chunks=(1, *array.sample_shape),
            shards=(manifest.shard_size, *array.sample_shape),
            compressors=None,
            filters=None,
            fill_value=0,
            dimension_names=dimension_names(array),
        )
    group.create_array(
        CRC32C,
        shape=(manifest.num_samples, len(spec.arrays)),
        dtype="uint32",
        chunks=(manifest.shard_size, len(spec.arrays)),
        compressors=None,
        filters=None,
        fill_value=0,
        dimension_names=("sample", "array"),
    ).attrs["arrays"] = [array.name for array in spec.arrays]
    _write_group_digest(folder)


def set_attributes(store: Path, group: str, attributes: dict[str, Any]) -> None:
    """Update some attributes of a group atomically, and its digest if it has one."""
    folder = confined(store, check_path(group, str(store), 2))
    meta = read_node(folder, "group")
    meta["attributes"] |= attributes
    if GROUP_DIGEST in meta["attributes"]:
        meta["attributes"][GROUP_DIGEST] = _digest_of_group(folder, meta["attributes"])
    write_json(folder / METADATA_FILE, meta)
    consolidate(store)


def record_digests(store: Path) -> list[str]:
    """Record checksums of a store's metadata, labels and sample index as they are now. Return the paths of its groups.

    For stores of earlier versions, which have none, and for metadata that was changed on purpose.

    Raises:
        StoreError: the metadata cannot be used, whatever its checksum.
    """
    manifest = read_root(store, verified=False).manifest
    groups = group_paths(store)
    for group in groups:
        folder = confined(store, group)
        read_group(store, group, manifest, verified=False)
        _write_group_digest(folder)
    write_root_digest(store)
    consolidate(store)
    return groups


def write_root_digest(store: Path) -> None:
    """Record the checksums of labels and sample index, and that of the root attributes, in the root."""
    meta = read_node(store, "group")
    files = {name: file_record(read_recorded(store / name, None)) for name in RECORDED_FILES}
    digest = RootDigest(files=files, crc32c=root_checksum(meta["attributes"][ROOT_ATTRIBUTE], files))
    meta["attributes"][ROOT_DIGEST] = unstructure(digest)
    write_json(store / METADATA_FILE, meta)


def _write_group_digest(folder: Path) -> None:
    meta = read_node(folder, "group")
    meta["attributes"][GROUP_DIGEST] = _digest_of_group(folder, meta["attributes"])
    write_json(folder / METADATA_FILE, meta)


def _digest_of_group(folder: Path, attributes: dict[str, Any]) -> int:
    own = {name: value for name, value in attributes.items() if name != GROUP_DIGEST}
    names = [*read_node(folder / CRC32C, "array")["attributes"]["arrays"], CRC32C]
    return group_checksum(own, {name: read_node(folder / name, "array") for name in names})


def group_paths(store: Path) -> list[str]:
    """Return the paths of the groups in the folder of a store: `latents/NAME`, then `features/NAME`.

    Raises:
        StoreError: the name of a folder cannot be that of a group.
    """
    return [
        check_path(f"{kind}/{folder.name}", str(store), 2)
        for kind in ("latents", "features")
        if (store / kind).is_dir()
        for folder in sorted((store / kind).iterdir())
        if TEMPORARY not in folder.name and (folder / CRC32C / METADATA_FILE).exists()
    ]


def consolidate(store: Path) -> None:
    """Copy the metadata of all groups and arrays into the root's zarr.json.

    zarr-python then reads the hierarchy from one file and does not list the root, where it would warn about files that
    are not zarr's (commits, samples.parquet). Readers that do not support `consolidated_metadata` ignore it.
    """
    root = read_json(store / METADATA_FILE, StoreError)
    metadata = {name: read_json(store / name / METADATA_FILE, StoreError) for name in _nodes(store)}
    root[COPY] = {"kind": "inline", "must_understand": False, "metadata": metadata}
    write_json(store / METADATA_FILE, root)


def _nodes(store: Path) -> Iterator[str]:
    """Yield the paths of all groups and arrays below the root."""
    for depth in range(1, 4):
        for path in sorted(store.glob("*/" * depth + METADATA_FILE)):
            name = str(path.parent.relative_to(store))
            if TEMPORARY not in name:
                yield check_path(name, str(store), 3)


def copied_metadata(root: dict[str, Any], where: str) -> dict[str, dict[str, Any]]:
    """Return the copies of zarr.json in the root's, by path of the group or array.

    Args:
        root: the contents of the root's zarr.json.
        where: its location, for errors.

    Raises:
        StoreError: there are none, or they are damaged.
    """
    copy = root.get(COPY)
    found = copy.get("metadata") if isinstance(copy, dict) else None
    if not isinstance(found, dict) or not all(isinstance(meta, dict) for meta in found.values()):
        raise StoreError(f"{where} does not describe a store: {COPY} is missing or damaged")
    return {check_path(name, where, 3): meta for name, meta in found.items()}


def copy_is_current(store: Path) -> bool:
    """Return whether the root lists the groups in the folder, with their attributes.

    Reads one small file per group. The digest among the attributes covers those of the arrays.
    """
    root = read_json(store / METADATA_FILE, StoreError)
    try:
        copied = copied_metadata(root, str(store))
    except StoreError:
        return False
    groups = group_paths(store)
    listed = {name for name in copied if name.startswith(("latents/", "features/")) and name.count("/") == 1}
    try:
        return listed == set(groups) and all(copied[name] == read_node(store / name, "group") for name in groups)
    except StoreError:  # of a damaged group, which is reported when it is read
        return False
