"""Creating a store and its groups from templates, or checking that existing ones were made from the same things.

Creation comes before any writing: afterwards, workers only write shards into what exists.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from ..errors import StoreError
from .hub import READ_ONLY, is_hub
from .layout import FULL_RANGE, GroupSpec, default_shard_size
from .manifest import Manifest
from .metadata_writer import consolidate, copy_is_current
from .remote import is_url, local_folder
from .store import Group, Store, open_store
from .upload import create_store_at, store_exists
from .writer import create_group

CROP = "adm-center-crop"


def open_or_create_store(
    location: str,
    index: pa.Table,
    *,
    index_digest: str,
    resolution: int,
    class_names: tuple[str, ...],
    source: dict[str, Any],
    shard_size: int | None = None,
) -> Store:
    """Open the store of these images, or create it.

    Args:
        location: a folder or a URL.
        index: the sample index, row i for sample i.
        index_digest: the digest of `index`.
        resolution: side of the crops in pixels.
        class_names: name of label i.
        source: kind, path and options of the source, and the files that were skipped.
        shard_size: samples per shard. Default: that of the existing store, else `layout.default_shard_size`.

    Raises:
        StoreError: the existing store holds other images, or has another resolution or shard size.
    """
    if is_hub(location):
        raise StoreError(f"{location}: {READ_ONLY}")
    if not store_exists(location):
        manifest = Manifest(
            num_samples=len(index),
            resolution=resolution,
            crop=CROP,
            shard_size=shard_size or default_shard_size(len(index)),
            index_digest=index_digest,
            class_names=class_names,
            source=source,
            pixels=FULL_RANGE,
        )
        create_store_at(location, manifest, index)
    elif not is_url(location) and not copy_is_current(local_folder(location)):
        consolidate(local_folder(location))  # a writer was killed before it did
    store = open_store(location)
    found = store.manifest
    pairs = [
        ("images (digest of keys, labels, sizes)", index_digest[:12], found.index_digest[:12]),
        ("number of images", len(index), len(store)),
        ("resolution", resolution, found.resolution),
        ("shard size", shard_size or found.shard_size, found.shard_size),
    ]
    different = [f"{name}: expected {wanted}, found {there}" for name, wanted, there in pairs if wanted != there]
    if different:
        store.close()
        raise StoreError(f"{location} was made from something else ({'; '.join(different)}): choose another --store")
    return store


def prepare_groups(store: Store, specs: Iterable[GroupSpec]) -> None:
    """Create the groups that are missing; StoreError when an existing one was encoded with something else."""
    for spec in specs:
        if spec.path not in store.group_names():
            create_group(store.path, store.manifest, spec)
            store.upload_group(spec.path)
        _require_same_fingerprint(store.location, Group(store.path, spec.path, store.manifest), spec)


def _require_same_fingerprint(location: str, group: Group, spec: GroupSpec) -> None:
    recorded, requested = group.fingerprint, spec.attributes["fingerprint"]
    different = [
        f"{name}: recorded {recorded.get(name)!r}, requested {requested.get(name)!r}"
        for name in sorted(recorded.keys() | requested.keys())
        if recorded.get(name) != requested.get(name)
    ]
    if different:
        raise StoreError(
            f"{location}: {spec.path} was encoded with something else ({'; '.join(different)}): "
            f"use the same, or delete {location}/{spec.path} and {location}/commits/{spec.path}"
        )
