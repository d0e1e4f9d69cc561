"""Description of the store in a report: images, groups, fingerprints, completeness and size."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...config.paths import place
from ...stores import Group, Store
from ...stores.layout import num_shards
from ..artifacts.image_counts import count_images
from ..runtime.sizes import bytes_text
from .tables import Cell, Table

_SHOWN_OF_DIGEST = 12
_DIGEST_LENGTH = 64


@dataclass(frozen=True, slots=True)
class StoreReport:
    """Properties of a store, its groups and their fingerprints."""

    properties: tuple[tuple[str, str], ...]
    groups: Table
    fingerprints: Table


def describe_store(store: Store) -> StoreReport:
    """Describe an open store from its attributes and commit records; no array is read."""
    manifest = store.manifest
    groups = [store.group(name) for name in store.group_names()]
    properties = (
        *count_images(store).properties(),
        ("Crop", f"{manifest.resolution} × {manifest.resolution} pixels, {manifest.crop}"),
        ("Size", bytes_text(sum(group.num_bytes for group in groups))),
        ("Samples per shard", f"{manifest.shard_size:,}"),
        ("Source", f"{manifest.source.get('path', 'unknown')} ({manifest.source.get('kind', 'unknown')})"),
        ("Index digest", manifest.index_digest[:_SHOWN_OF_DIGEST]),
        ("Path", store.location),
    )
    return StoreReport(properties, _groups_table(store, groups), _fingerprints_table(groups))


def store_name(location: str) -> str:
    """Return the last part of a store's location, a folder or a URL."""
    return Path(place(location)).name


def _groups_table(store: Store, groups: list[Group]) -> Table:
    total = num_shards(len(store), store.manifest.shard_size)
    rows = tuple(
        (
            Cell(group.path),
            Cell(group.attributes.get("codec", {}).get("name", "none")),
            Cell(_cosine(group), numeric=True),
            Cell(", ".join(_array(array.name, array.sample_shape, array.dtype) for array in group.arrays)),
            Cell(f"{len(group.commits):,} of {total:,}", numeric=True),
            Cell(f"{len(group.quarantined):,}", numeric=True),
            Cell(bytes_text(group.spec.sample_bytes), numeric=True),
            Cell(bytes_text(group.num_bytes), numeric=True),
        )
        for group in groups
    )
    header = ("Group", "Codec", "Codec cosine", "Arrays (per sample)", "Shards", "Quarantined", "Sample size", "Size")
    return Table(
        "Groups of the store", tuple(Cell(text, numeric=i == 2 or i > 3) for i, text in enumerate(header)), rows
    )


def _fingerprints_table(groups: list[Group]) -> Table:
    rows = tuple((Cell(group.path), Cell(_short(group.fingerprint))) for group in groups)
    return Table("Fingerprints of the groups", (Cell("Group"), Cell("Fingerprint")), rows)


def _array(name: str, shape: tuple[int, ...], dtype: str) -> str:
    return f"{name} {' × '.join(map(str, shape))} {dtype}"


def _cosine(group: Group) -> str:
    """Return mean and minimum of the codec's cosine: `0.99997 (min 0.99981)`."""
    cosine = group.token_cosine
    return "" if cosine is None else f"{cosine[0]:.5f} (min {cosine[1]:.5f})"


def _short(fingerprint: dict[str, Any]) -> str:
    """Return `weights_sha256 1f6fbd37e55e, precision float32, …`: digests shortened, nested values omitted."""
    plain = {name: value for name, value in fingerprint.items() if isinstance(value, str | int | float)}
    return ", ".join(f"{name} {_shortened(str(value))}" for name, value in plain.items())


def _shortened(value: str) -> str:
    is_digest = len(value) == _DIGEST_LENGTH and set(value) <= set("0123456789abcdef")
    return value[:_SHOWN_OF_DIGEST] if is_digest else value
