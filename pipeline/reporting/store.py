"""What a report says of the store: which images, which groups, made from what, how complete, how large."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...stores import Group, Store
from ...stores.layout import num_shards
from .tables import Cell, Table, bytes_text, count_text

_SHOWN_OF_DIGEST = 12
_DIGEST_LENGTH = 64


@dataclass(frozen=True, slots=True)
class StoreReport:
    """The store in words and tables."""

    name: str
    facts: tuple[tuple[str, str], ...]
    groups: Table
    fingerprints: Table


def describe_store(store: Store) -> StoreReport:
    """Facts of an open store; reads its attributes and commit records, no array."""
    manifest = store.manifest
    groups = [store.group(name) for name in store.group_names()]
    quarantined = {entry.index for group in groups for entry in group.quarantined}
    facts = (
        ("Images", f"{len(store):,} in {count_text(len(manifest.class_names), 'class', 'classes')}"),
        ("Crops", f"{manifest.resolution} × {manifest.resolution} pixels, {manifest.crop}"),
        ("Size", bytes_text(sum(_size(group) for group in groups))),
        ("Samples a shard", f"{manifest.shard_size:,}"),
        ("Quarantined", f"{len(quarantined):,} of them, which could not be decoded" if quarantined else "none"),
        ("Images from", f"{manifest.source.get('path', 'unknown')} ({manifest.source.get('kind', 'unknown')})"),
        ("Index digest", manifest.index_digest[:_SHOWN_OF_DIGEST]),
        ("Store", str(store.path)),
    )
    return StoreReport(store_name(store.path), facts, _groups_table(store, groups), _fingerprints_table(groups))


def store_name(path: Path) -> str:
    """The store's folder name."""
    return path.resolve().name


def complete_groups(store: Store, kind: str) -> list[str]:
    """Groups of a kind (`latents`, `features`) of which every shard is committed."""
    names = [name for name in store.group_names() if name.startswith(f"{kind}/")]
    return [name for name in names if not store.group(name).missing_shards()]


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
            Cell(bytes_text(_size(group)), numeric=True),
        )
        for group in groups
    )
    header = ("Group", "Codec", "Cosine", "Arrays of a sample", "Shards", "Quarantined", "A sample", "On disk")
    return Table(
        "Groups of the store", tuple(Cell(text, numeric=i == 2 or i > 3) for i, text in enumerate(header)), rows
    )


def _fingerprints_table(groups: list[Group]) -> Table:
    rows = tuple((Cell(group.path), Cell(_short(group.fingerprint))) for group in groups)
    return Table("What the groups were made with", (Cell("Group"), Cell("Fingerprint")), rows)


def _array(name: str, shape: tuple[int, ...], dtype: str) -> str:
    return f"{name} {' × '.join(map(str, shape))} {dtype}"


def _cosine(group: Group) -> str:
    """Mean and least cosine of the codec: 0.99997 (least 0.99981)."""
    cosine = group.token_cosine
    return "" if cosine is None else f"{cosine[0]:.5f} (least {cosine[1]:.5f})"


def _size(group: Group) -> int:
    return sum(file["bytes"] for commit in group.commits.values() for file in commit.files.values())


def _short(fingerprint: dict[str, Any]) -> str:
    """`weights_sha256 1f6fbd37e55e, precision float32, …`: one line, digests shortened, nested values left out."""
    plain = {name: value for name, value in fingerprint.items() if isinstance(value, str | int | float)}
    return ", ".join(f"{name} {_shortened(str(value))}" for name, value in plain.items())


def _shortened(value: str) -> str:
    is_digest = len(value) == _DIGEST_LENGTH and set(value) <= set("0123456789abcdef")
    return value[:_SHOWN_OF_DIGEST] if is_digest else value
