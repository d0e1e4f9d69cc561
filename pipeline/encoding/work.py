"""The work of an encode run: the store of the source, and the shards without a commit."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from ...config import EncodeConfig
from ...errors import ConfigError, RemoteError, StoreError, WeightsError
from ...models.encoders.registry import check_encoder, check_encoder_name, is_of_timm
from ...models.vae_files import check_vae, describe_vae, is_known_vae, require_vae_resolution
from ...sources import Source, index_digest, open_source
from ...stores import Store, open_store
from ...stores.creation import open_or_create_store
from ...stores.layout import features_group, latents_group, num_shards, shard_range
from ...stores.model_names import canonical_name
from ...stores.upload import store_exists
from ..artifacts.image_counts import listed_as_store
from ..runtime.actor_pool import TimeLimitError
from ..runtime.full_disk import is_disk_full
from ..runtime.progress import progress
from ..runtime.task_queue import Failure

logger = logging.getLogger(__name__)

TRIES = 3  # per shard


class ShardTask(NamedTuple):
    """A shard, and the groups that do not have it yet, or whose shard is to be replaced."""

    shard: int
    groups: tuple[str, ...]
    replace: bool = False


@dataclass(frozen=True, slots=True)
class ShardResult:
    """The outcome of one shard."""

    shard: int
    num_images: int
    quarantined: int
    worker: str  # host and process ID
    seconds: float  # from its first read to its commit
    busy: dict[str, float]  # group → seconds for which the device computed it, for this shard
    activity: dict[str, float]  # of the worker since its previous result: seconds of each part (`activity.Activity`)
    in_float32: tuple[str, ...] = ()  # keys of the images that overflowed in half precision


@dataclass(frozen=True, slots=True)
class FailedShard:
    """A shard that failed every time it was tried."""

    shard: int
    cause: str

    @classmethod
    def from_failure(cls, failure: Failure[ShardTask]) -> FailedShard:
        """Describe a failed task in one line."""
        hint = " (--shard-timeout)" if isinstance(failure.error, TimeLimitError) else ""
        return cls(failure.task.shard, failure.cause + hint)


def is_fatal(error: BaseException) -> bool:
    """Return whether an error would recur for every shard. An unreachable bucket may recover, so it is not fatal."""
    return is_disk_full(error) or (
        isinstance(error, ConfigError | StoreError | WeightsError) and not isinstance(error, RemoteError)
    )


def open_or_create(config: EncodeConfig) -> Store:
    """Open the store of the config's source, or create it from the source's index.

    Raises StoreError when the store holds other images, or has a different resolution or shard size.
    """
    exists = store_exists(config.store)
    options = listed_as_store(config.store, config.source_options)
    source = open_source(config.source, config.source_kind, options)
    index = _list_images(source)
    for note in source.notes if not exists or options != config.source_options else ():
        logger.warning("%s", note)
    return open_or_create_store(
        config.store,
        index,
        index_digest=index_digest(index),
        resolution=config.resolution,
        class_names=source.class_names,
        source=source.provenance(),
        shard_size=config.shard_size,
    )


def _list_images(source: Source) -> Any:
    with progress("list images", 0, "parts") as bar:
        return source.index(bar.reach)


def wanted_groups(config: EncodeConfig) -> tuple[str, ...]:
    """Return the paths of the groups that the config requests: latents first, then features."""
    return (latents_group(config.vae), *(features_group(encoder) for encoder in config.encoder))


def with_vae_name(config: EncodeConfig) -> EncodeConfig:
    """Return the config with the name of its VAE that all spellings of its path have in common.

    It is the one that the store has latents of, else an absolute path. On Ray, the folder needs to exist only on the
    nodes, so its name may remain a relative path.
    """
    name = canonical_name(config.vae)
    if is_known_vae(config.vae) or (name == config.vae and not Path(name).is_absolute()):
        return config
    if store_exists(config.store):
        with open_store(config.store) as store:
            name = store.vae_name(config.vae)
    return replace(config, vae=name)


def require_models(config: EncodeConfig, groups: Sequence[str]) -> None:
    """Raise ConfigError or WeightsError, without torch, if the model of a group is unknown or its file is missing.

    On Ray, files need to exist only on the nodes, so only the names of encoders are checked.
    """
    encoders = [encoder for encoder in config.encoder if features_group(encoder) in groups]
    if config.uses_ray:
        for encoder in encoders:
            check_encoder_name(encoder)
        return
    if latents_group(config.vae) in groups:
        check_vae(config.vae)
    for encoder in encoders:
        check_encoder(encoder, config.weights_of(encoder))


def require_sizes(config: EncodeConfig, groups: Sequence[str]) -> None:
    """Raise ConfigError if the model of a group does not accept crops of `--resolution`.

    Called before a store is created, since its resolution is permanent. Only encoders of timm need torch to find out.
    On Ray, the files of a VAE need to exist only on the nodes, which check it themselves.
    """
    if latents_group(config.vae) in groups and not config.uses_ray:
        require_vae_resolution(config.vae, describe_vae(config.vae)[1], config.resolution)
    for encoder in config.encoder:
        if is_of_timm(encoder) and features_group(encoder) in groups:
            from ...models.encoders.sizes import require_encoder_resolution

            require_encoder_resolution(encoder, config.resolution)


def plan_work(config: EncodeConfig, store: Store, wanted: Sequence[str]) -> list[ShardTask]:
    """Return the shards that at least one group in `wanted` lacks, in ascending order.

    Raises StoreError when an existing group has a different codec, or when its flipped views do not match `--flip`.
    """
    existing = set(store.group_names())
    for name in wanted:
        if name in existing:
            _require_same_storage(config, store, name)
    total = num_shards(len(store), store.manifest.shard_size)
    missing = {name: set(store.group(name).missing_shards() if name in existing else range(total)) for name in wanted}
    tasks = (ShardTask(shard, tuple(name for name in wanted if shard in missing[name])) for shard in range(total))
    return [task for task in tasks if task.groups]


def _require_same_storage(config: EncodeConfig, store: Store, name: str) -> None:
    group = store.group(name)
    codec = group.attributes.get("codec", {}).get("name", config.codec)
    if codec != config.codec:
        raise StoreError(f"{store.location}: {name} is stored as {codec}, requested --codec {config.codec}")
    if group.spec.has_flips != config.flip:
        stored, requested = ("with", "--no-flip") if not config.flip else ("without", "--flip")
        raise StoreError(f"{store.location}: {name} is stored {stored} flipped views, requested {requested}")


def groups_of(work: Iterable[ShardTask]) -> tuple[str, ...]:
    """Return the groups of all tasks, sorted."""
    return tuple(sorted({group for task in work for group in task.groups}))


def images_of(work: Iterable[ShardTask], store: Store) -> int:
    """Return the number of images in the shards of `work`."""
    return sum(len(shard_range(task.shard, len(store), store.manifest.shard_size)) for task in work)
