"""`repa-pipe encode`: encode the shards that have no commit, in this process or on Ray.

To resume, the stage lists commits and encodes every shard without one. Re-running a finished command does nothing.
Source, store and names are checked before torch is imported.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ..config import EncodeConfig
from ..stores import Group, Store, open_store
from ..stores.creation import prepare_groups
from ..stores.files import confined, remove_abandoned, remove_leftovers
from ..stores.layout import COMMITS, QUARANTINE_FILE, features_group
from ..stores.manifest import write_quarantine
from ..stores.upload import store_exists
from .artifacts.image_counts import count_images
from .encoding.latents_scale import warn_of_unusual_scale
from .encoding.monitor import EncodeMonitor
from .encoding.space import full_disk_as_error
from .encoding.work import (
    FailedShard,
    ShardTask,
    groups_of,
    images_of,
    open_or_create,
    plan_work,
    require_models,
    require_sizes,
    wanted_groups,
    with_vae_name,
)
from .runtime.imports import quick_imports
from .runtime.progress import progress
from .runtime.task_queue import Failure

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EncodeResult:
    """Summary of an `encode` run."""

    store: str
    groups: dict[str, int]  # group → bytes on disk
    num_samples: int
    encoded: int  # images encoded by this run, without broken ones
    quarantined: int  # broken images in the store
    seconds: float
    busy_share: float | None  # fraction of the workers' time for which their device was in the models
    worker_rates: list[float]  # images per second of each actor, or of this process
    failed: list[FailedShard] = field(default_factory=list)
    classes: int = 0
    quarantine_reasons: dict[str, int] = field(default_factory=dict)  # reason → broken images in the store
    skipped: dict[str, int] | None = None  # reason → files of the source that are not samples; None: not recorded
    in_float32: int = 0  # images in the store that overflowed in half precision and were encoded in float32
    busy_shares: dict[str, float] = field(default_factory=dict)  # group → its part of `busy_share`
    waiting_shares: dict[str, float] = field(
        default_factory=dict
    )  # no batch in the models: waiting for images, writing

    def as_json(self) -> dict[str, Any]:
        """Return the summary that the command prints."""
        return asdict(self)


def run(config: EncodeConfig, wanted: Sequence[str] | None = None) -> EncodeResult:
    """Encode the missing shards of the groups `wanted`. Default: of all groups that the config requests.

    Raises:
        ConfigError, SourceError, WeightsError: the settings, the source or the weights are unusable.
        StoreError: the store holds other images, a group was encoded with other weights, or more than `--max-bad` of
            the images are broken, or all of them, or the disk is full.
        ActorError: Ray actors keep dying during startup.
    """
    start = time.monotonic()
    config = with_vae_name(config)
    wanted = wanted_groups(config) if wanted is None else wanted
    monitor, failures = None, []
    if not store_exists(config.store):
        require_models(config, wanted)
        require_sizes(config, wanted)
    with open_or_create(config) as store:
        work = plan_work(config, store, wanted)
        require_models(config, groups_of(work))
        _check_given_weights(config, store, set(wanted) - set(groups_of(work)))
        if work:
            with progress("encode", images_of(work, store), "images") as bar:
                monitor = EncodeMonitor(config, store, wanted, bar)
                with full_disk_as_error(store, wanted):
                    failures = _encode(config, store, work, monitor)
        else:
            names = ", ".join(wanted)
            logger.info("%s is complete (%s samples of %s); nothing to do", config.store, f"{len(store):,}", names)
    failed = [FailedShard.from_failure(failure) for failure in failures]
    with open_store(config.store) as store:  # reopened, since the commits have changed
        groups = [store.group(name) for name in wanted if name in store.group_names()]
        return _finish(store, groups, monitor, failed, time.monotonic() - start)


def _encode(
    config: EncodeConfig, store: Store, work: list[ShardTask], monitor: EncodeMonitor
) -> list[Failure[ShardTask]]:
    if config.uses_ray:
        from .encoding.on_ray import run_on_ray

        return run_on_ray(config, store, work, monitor)
    with quick_imports():
        from .encoding.inline import run_inline

    return run_inline(config, store, work, monitor)


def _check_given_weights(config: EncodeConfig, store: Store, finished: Collection[str]) -> None:
    """Check that weights files given for finished groups, which are not encoded again, match these groups."""
    given = [features_group(encoder) for encoder in config.encoder if config.weights_of(encoder)]
    groups = tuple(group for group in given if group in finished)
    if groups:
        from .encoding.shard import ShardEncoder, use_recorded_threads
        from .runtime.device import choose_device

        require_models(config, groups)
        device = choose_device(config.device)
        if device.type == "cpu":
            use_recorded_threads(config, groups)
        with ShardEncoder(config, groups, device) as encoder:
            prepare_groups(store, encoder.specs())


def _finish(
    store: Store, groups: list[Group], monitor: EncodeMonitor | None, failed: list[FailedShard], seconds: float
) -> EncodeResult:
    quarantined = store.quarantined([group.path for group in groups])
    for group in groups:
        warn_of_unusual_scale(group)
    if not failed:
        _remove_temporary_files(store, groups)
        if quarantined:
            write_quarantine(store.path, [quarantined[index] for index in sorted(quarantined)])
            store.upload_file(QUARANTINE_FILE)
    counts = count_images(store, [group.path for group in groups])
    for heading, text in counts.properties():
        logger.info("%s: %s", heading, text)
    counts.require_good_image(store.location)
    busy = monitor.busy_fraction if monitor else None
    if monitor and busy is not None:
        logger.info("%s", monitor.utilization())
    return EncodeResult(
        store=store.location,
        groups={group.path: group.num_bytes for group in groups},
        num_samples=len(store),
        encoded=monitor.encoded if monitor else 0,
        quarantined=len(quarantined),
        seconds=round(seconds, 1),
        busy_share=None if busy is None else round(busy, 3),
        worker_rates=[round(rate, 2) for rate in monitor.rates] if monitor else [],
        failed=failed,
        classes=len(counts.class_names),
        quarantine_reasons={each.reason: each.count for each in counts.quarantined},
        skipped=None if counts.skipped is None else {each.reason: each.count for each in counts.skipped},
        in_float32=len({sample for group in groups for sample in group.float32_samples}),
        busy_shares=_rounded(monitor.busy_fractions) if monitor else {},
        waiting_shares=_rounded(monitor.waiting_fractions) if monitor else {},
    )


def _rounded(fractions: dict[str, float]) -> dict[str, float]:
    return {name: round(fraction, 3) for name, fraction in fractions.items()}


def _remove_temporary_files(store: Store, groups: list[Group]) -> None:
    """Remove the files of killed writers: all in finished groups, elsewhere only those of processes that have ended."""
    for group in groups:
        remove_leftovers(confined(store.path, group.path))
        remove_leftovers(confined(store.path, f"{COMMITS}/{group.path}"))
        remove_abandoned((store.path / group.path).parent)
    remove_abandoned(store.path)
    place = store.path.resolve()
    remove_abandoned(place.parent, place.name)
