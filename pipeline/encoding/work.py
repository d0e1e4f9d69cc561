"""What there is to encode: a store for this source, the shards that lack a commit, groups made from templates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...config import EncodeConfig
from ...errors import ConfigError, RemoteError, StoreError, WeightsError
from ...sources import Source, index_digest, open_source
from ...stores import Group, Store, open_store
from ...stores.layout import GroupSpec, default_shard_size, features_group, latents_group, num_shards
from ...stores.manifest import Manifest
from ...stores.upload import create_store_at, store_exists
from ...stores.writer import create_group
from ..runtime.progress import progress

CROP = "adm-center-crop"
TRIES = 3

Work = list[tuple[int, tuple[str, ...]]]  # shard, groups that lack it


def is_fatal(error: BaseException) -> bool:
    """Whether it would be the same for every shard, so that the run ends; a bucket that is out of reach may return."""
    return isinstance(error, ConfigError | StoreError | WeightsError) and not isinstance(error, RemoteError)


@dataclass(frozen=True, slots=True)
class FailedShard:
    """A shard that failed every time it was tried."""

    shard: int
    cause: str

    @classmethod
    def from_exception(cls, shard: int, error: BaseException) -> FailedShard:
        """The shard and what ended its last try, in one line."""
        lines = str(error).strip().splitlines() or [""]
        return cls(shard, f"{type(error).__name__}: {lines[0]}")


def open_or_create(config: EncodeConfig) -> Store:
    """The store of this source: opened, or created from the source's index.

    Raises StoreError when it holds other images, another resolution or another shard size than asked for.
    """
    source = open_source(config.source, config.source_kind)
    table = _index(source)
    digest = index_digest(table)
    if not store_exists(config.store):
        manifest = Manifest(
            num_samples=len(table),
            resolution=config.resolution,
            crop=CROP,
            shard_size=config.shard_size or default_shard_size(len(table)),
            index_digest=digest,
            class_names=source.class_names,
            source=source.describe(),
        )
        create_store_at(config.store, manifest, table)
    store = open_store(config.store)
    pairs = [
        ("images (digest of keys, labels, sizes)", store.manifest.index_digest[:12], digest[:12]),
        ("number of images", len(store), len(table)),
        ("resolution", store.manifest.resolution, config.resolution),
        ("shard size", store.manifest.shard_size, config.shard_size or store.manifest.shard_size),
    ]
    different = [f"{name} {there} there, {asked} asked for" for name, there, asked in pairs if there != asked]
    if different:
        raise StoreError(f"{config.store} was made from something else: {'; '.join(different)}: name another --store")
    return store


def _index(source: Source) -> Any:
    with progress("list images", 0, "parts") as bar:
        return source.index(bar.reach)


def wanted_groups(config: EncodeConfig) -> tuple[str, ...]:
    """The groups that the config asks for."""
    return (latents_group(config.vae), *(features_group(encoder) for encoder in config.encoder))


def plan(config: EncodeConfig, store: Store) -> Work:
    """The shards that some wanted group lacks, with these groups, in order."""
    there = set(store.group_names())
    for name in wanted_groups(config):
        codec = (
            store.group(name).attributes.get("codec", {}).get("name", config.codec) if name in there else config.codec
        )
        if codec != config.codec:
            raise StoreError(f"{store.location}: {name} is stored as {codec}, --codec {config.codec} was asked for")
        if name in there and store.group(name).spec.has_flips != config.flip:
            stored, asked = ("with", "--no-flip") if not config.flip else ("without", "--flip")
            raise StoreError(f"{store.location}: {name} is stored {stored} flipped views, {asked} was asked for")
    total = num_shards(len(store), store.manifest.shard_size)
    missing = {
        name: set(store.group(name).missing_shards() if name in there else range(total))
        for name in wanted_groups(config)
    }
    lacking = ((shard, tuple(name for name in missing if shard in missing[name])) for shard in range(total))
    return [(shard, groups) for shard, groups in lacking if groups]


def prepare_groups(store: Store, specs: list[GroupSpec]) -> None:
    """Create the groups from their templates; StoreError when one exists that something else was encoded with."""
    for spec in specs:
        if spec.path not in store.group_names():
            create_group(store.path, store.manifest, spec)
            store.upload_group(spec.path)
        _require_same_fingerprint(store.location, Group(store.path, spec.path, store.manifest), spec)


def groups_of(work: Work) -> tuple[str, ...]:
    """Every group that some shard lacks."""
    return tuple(sorted({group for _, groups in work for group in groups}))


def shard_images(store: Store, shard: int) -> int:
    """How many images a shard holds."""
    return min(store.manifest.shard_size, len(store) - shard * store.manifest.shard_size)


def _require_same_fingerprint(location: str, group: Group, spec: GroupSpec) -> None:
    there, asked = group.fingerprint, spec.attributes["fingerprint"]
    different = [
        f"{name}: {there.get(name)!r} there, {asked.get(name)!r} asked for"
        for name in sorted(there.keys() | asked.keys())
        if there.get(name) != asked.get(name)
    ]
    if different:
        raise StoreError(
            f"{location}: {spec.path} was encoded with something else ({'; '.join(different)}): "
            f"use the same, or delete {location}/{spec.path} and {location}/commits/{spec.path}"
        )
