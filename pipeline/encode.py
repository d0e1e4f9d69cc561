"""`repa-pipe encode`: plan the shards that have no commit, run them here or on Ray, say what happened.

Resuming is listing commits: whatever has none is work. The same command continues, and finished does nothing.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from typing import Any

from ..config import EncodeConfig
from ..stores import Group, Store, open_store
from ..stores.files import remove_abandoned, remove_leftovers
from ..stores.layout import COMMITS, QUARANTINE_FILE, features_group
from ..stores.manifest import write_quarantine
from .encoding.monitor import Monitor
from .encoding.on_ray import run_on_ray
from .encoding.shard import ShardEncoder, ShardResult, StoppedError
from .encoding.work import (
    TRIES,
    FailedShard,
    Work,
    groups_of,
    is_fatal,
    open_or_create,
    plan,
    prepare_groups,
    shard_images,
    wanted_groups,
)
from .runtime.progress import progress, say


@dataclass(frozen=True, slots=True)
class EncodeResult:
    """What a run of `encode` did."""

    store: str
    groups: dict[str, int]  # group → bytes on disk
    num_samples: int
    encoded: int  # images encoded by this run
    quarantined: int  # images of the store that are broken
    seconds: float
    busy_share: float | None  # of the workers' time, in which a batch was in the models
    worker_rates: list[float]  # images a second of every actor, or of this process
    failed: list[FailedShard] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """The summary that the command prints."""
        return asdict(self)


def run(config: EncodeConfig) -> EncodeResult:
    """Encode what the store lacks.

    Raises ConfigError, SourceError, WeightsError for what cannot work, StoreError for a store of other images or a
    group of other weights, and when more than `--max-bad` of the images are broken.
    """
    start = time.monotonic()
    monitor, failed = None, []
    with open_or_create(config) as store:
        work = plan(config, store)
        _check_named_weights(config, store, groups_of(work))
        if work:
            images = sum(shard_images(store, shard) for shard, _ in work)
            with progress("encode", images, "images") as bar:
                monitor = Monitor(config, store, bar)
                if config.ray or config.ray_address:
                    failed = run_on_ray(config, store, work, monitor)
                else:
                    failed = run_inline(config, store, work, monitor)
        else:
            groups = ", ".join(wanted_groups(config))
            say(f"{config.store} is complete: {len(store):,} samples of {groups}; nothing to do")
    with open_store(config.store) as store:  # anew: the commits have changed
        return _finish(config, store, monitor, failed, time.monotonic() - start)


def _check_named_weights(config: EncodeConfig, store: Store, loaded_anyway: tuple[str, ...]) -> None:
    """A finished group is not loaded again, unless a weights file is named for it: that must be the one."""
    named = [features_group(encoder) for encoder in config.encoder if config.weights_of(encoder)]
    finished = tuple(group for group in named if group in store.group_names() and group not in loaded_anyway)
    if finished:
        with ShardEncoder(config, finished) as encoder:
            prepare_groups(store, encoder.specs())


def run_inline(config: EncodeConfig, store: Store, work: Work, monitor: Monitor) -> list[FailedShard]:
    """Run the shards in this process: one is decoded and written while the other is in the models."""
    with ShardEncoder(config, groups_of(work)) as encoder:
        prepare_groups(store, encoder.specs())
        pool = ThreadPoolExecutor(2, thread_name_prefix="shard")

        def submit(shard: int, groups: tuple[str, ...]) -> Future[ShardResult]:
            return pool.submit(encoder.run, shard, groups, monitor.images)

        try:
            failed = drive(work, submit, monitor, config.shard_timeout)
        except BaseException as error:
            encoder.stop.set()
            # a batch may take longer than one likes to wait
            pool.shutdown(wait=not isinstance(error, KeyboardInterrupt))
            raise
        pool.shutdown()
        return failed


def drive(
    work: Work,
    submit: Callable[[int, tuple[str, ...]], Future[ShardResult]],
    monitor: Monitor,
    shard_timeout: float | None = None,
) -> list[FailedShard]:
    """Keep two shards in flight; a shard that fails is tried again, three times in all.

    A thread cannot be ended from outside: a shard that takes longer than `shard_timeout` seconds is only reported.
    """
    waiting = deque((shard, groups, 1) for shard, groups in work)
    running: dict[Future[ShardResult], tuple[int, tuple[str, ...], int]] = {}
    deadlines: dict[int, float] = {}
    failed = []
    while waiting or running:
        while waiting and len(running) < 2:
            entry = waiting.popleft()
            running[submit(entry[0], entry[1])] = entry
            deadlines[entry[0]] = time.monotonic() + (shard_timeout or math.inf)
        for future in wait(running, timeout=0.5, return_when=FIRST_COMPLETED).done:
            shard, groups, tried = running.pop(future)
            del deadlines[shard]
            error = future.exception()
            if error is None:
                monitor.shard(future.result())
            elif is_fatal(error) or isinstance(error, StoppedError):
                raise error
            elif tried < TRIES:
                waiting.append((shard, groups, tried + 1))
            else:
                failed.append(FailedShard.from_exception(shard, error))
        for shard in [shard for shard, deadline in deadlines.items() if time.monotonic() > deadline]:
            deadlines[shard] = math.inf
            say(
                f"shard {shard} has not finished within --shard-timeout {shard_timeout:g} s; this process cannot end "
                "it: stop and start again, or use --ray, where its actor is ended and the shard is tried again"
            )
        monitor.images(0)
    return failed


def _finish(
    config: EncodeConfig, store: Store, monitor: Monitor | None, failed: list[FailedShard], seconds: float
) -> EncodeResult:
    groups = [store.group(name) for name in wanted_groups(config) if name in store.group_names()]
    quarantined = {entry.index: entry for group in groups for entry in group.quarantined}
    if not failed:
        _tidy(store, groups)
        if quarantined:
            write_quarantine(store.path, [quarantined[index] for index in sorted(quarantined)])
            store.upload_file(QUARANTINE_FILE)
    return EncodeResult(
        store=config.store,
        groups={
            group.path: sum(file["bytes"] for commit in group.commits.values() for file in commit.files.values())
            for group in groups
        },
        num_samples=len(store),
        encoded=monitor.encoded if monitor else 0,
        quarantined=len(quarantined),
        seconds=round(seconds, 1),
        busy_share=round(monitor.busy_share, 3) if monitor and monitor.busy_share is not None else None,
        worker_rates=[round(rate, 2) for rate in monitor.rates] if monitor else [],
        failed=failed,
    )


def _tidy(store: Store, groups: list[Group]) -> None:
    """Remove what killed writers left: all of it in finished groups; elsewhere another run may be at work."""
    for group in groups:
        remove_leftovers(store.path / group.path)
        remove_leftovers(store.path / COMMITS / group.path)
        remove_abandoned((store.path / group.path).parent)
    remove_abandoned(store.path)
    remove_abandoned(store.path.absolute().parent, store.path.name)
