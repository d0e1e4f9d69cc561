"""`repa-pipe encode`: plan the shards that have no commit, run them here or on Ray, say what happened.

Resuming is listing commits: whatever has none is work. The same command continues, and finished does nothing.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..config import EncodeConfig
from ..errors import ConfigError, StoreError
from ..sources import Source, index_digest, open_source
from ..stores import Group, Store, open_store
from ..stores.files import remove_leftovers
from ..stores.layout import GroupSpec, default_shard_size, features_group, latents_group, num_shards
from ..stores.manifest import Manifest, write_quarantine
from ..stores.writer import create_group, create_store
from .encode_shard import ShardEncoder, ShardResult, StoppedError
from .progress import Progress, progress, say

CROP = "adm-center-crop"
ALWAYS_ALLOWED_BAD = 10
TRIES = 3

Work = list[tuple[int, tuple[str, ...]]]  # shard, groups that lack it


@dataclass(frozen=True, slots=True)
class FailedShard:
    """A shard that failed every time it was tried."""

    shard: int
    cause: str


@dataclass(frozen=True, slots=True)
class EncodeResult:
    """What a run of `encode` did."""

    store: str
    groups: dict[str, int]  # group → bytes on disk
    num_samples: int
    encoded: int  # images encoded by this run
    quarantined: int  # images of the store that are broken
    seconds: float
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
    store = open_or_create(config)
    work = plan(config, store)
    _check_named_weights(config, store, groups_of(work))
    encoded, failed = 0, []
    if work:
        images = sum(_shard_images(store, shard) for shard, _ in work)
        with progress("encode", images, "images") as bar:
            monitor = Monitor(config, store, bar)
            if config.ray or config.ray_address:
                from .encode_ray import run_on_ray

                failed = run_on_ray(config, store, work, monitor)
            else:
                failed = run_inline(config, store, work, monitor)
        encoded = monitor.encoded
    else:
        say(f"{config.store} is complete: {len(store):,} samples of {', '.join(wanted_groups(config))}; nothing to do")
    return _finish(config, encoded, failed, time.monotonic() - start)


def open_or_create(config: EncodeConfig) -> Store:
    """The store of this source: opened, or created from the source's index.

    Raises StoreError when it holds other images, another resolution or another shard size than asked for.
    """
    source = open_source(config.source)
    table = _index(source)
    digest = index_digest(table)
    path = Path(config.store)
    if not (path / "zarr.json").exists():
        manifest = Manifest(
            num_samples=len(table),
            resolution=config.resolution,
            crop=CROP,
            shard_size=config.shard_size or default_shard_size(len(table)),
            index_digest=digest,
            class_names=source.class_names,
            source=source.describe(),
        )
        create_store(path, manifest, table)
    store = open_store(path)
    pairs = [
        ("images (digest of keys, labels, sizes)", store.manifest.index_digest[:12], digest[:12]),
        ("number of images", len(store), len(table)),
        ("resolution", store.manifest.resolution, config.resolution),
        ("shard size", store.manifest.shard_size, config.shard_size or store.manifest.shard_size),
    ]
    different = [f"{name} {there} there, {asked} asked for" for name, there, asked in pairs if there != asked]
    if different:
        raise StoreError(f"{path} was made from something else: {'; '.join(different)}: name another --store")
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
            raise StoreError(f"{store.path}: {name} is stored as {codec}, --codec {config.codec} was asked for")
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
        _require_same_fingerprint(store.path, Group(store.path, spec.path, store.manifest), spec)


def _check_named_weights(config: EncodeConfig, store: Store, loaded_anyway: tuple[str, ...]) -> None:
    """A finished group is not loaded again, unless a weights file is named for it: that must be the one."""
    named = [features_group(encoder) for encoder in config.encoder if config.weights_of(encoder)]
    finished = tuple(group for group in named if group in store.group_names() and group not in loaded_anyway)
    if finished:
        prepare_groups(store, ShardEncoder(config, finished).specs())


def _require_same_fingerprint(path: Path, group: Group, spec: GroupSpec) -> None:
    there, asked = group.fingerprint, spec.attributes["fingerprint"]
    different = [
        f"{name}: {there.get(name)!r} there, {asked.get(name)!r} asked for"
        for name in sorted(there.keys() | asked.keys())
        if there.get(name) != asked.get(name)
    ]
    if different:
        raise StoreError(
            f"{path}: {spec.path} was encoded with something else ({'; '.join(different)}): "
            f"use the same, or delete {path / spec.path} and {path / 'commits' / spec.path}"
        )


class Monitor:
    """Counts what was encoded and what was broken; ends the job when too much is."""

    def __init__(self, config: EncodeConfig, store: Store, bar: Progress) -> None:
        self._bar, self._lock = bar, threading.Lock()
        self._allowed = max(ALWAYS_ALLOWED_BAD, int(config.max_bad * len(store)))
        self._config = config
        groups = [store.group(name) for name in wanted_groups(config) if name in store.group_names()]
        self._bad = {shard: len(commit.quarantined) for group in groups for shard, commit in group.commits.items()}
        self.encoded = 0

    def images(self, count: int) -> None:
        """Images that went through the models."""
        with self._lock:
            self.encoded += count
            self._bar.update(count)

    def shard(self, result: ShardResult) -> None:
        """A shard that was committed; StoreError when more images are broken than allowed."""
        self._bad[result.shard] = result.quarantined
        bad = sum(self._bad.values())
        if bad:
            self._bar.note(f"{bad} broken")
        if bad > self._allowed:
            raise StoreError(
                f"{bad} images are broken, --max-bad {self._config.max_bad:g} allows {self._allowed}: the records in "
                f"{self._config.store}/commits list them; mend the source, or raise --max-bad and start again"
            )


def run_inline(config: EncodeConfig, store: Store, work: Work, monitor: Monitor) -> list[FailedShard]:
    """Run the shards in this process: one is decoded and written while the other is in the models."""
    encoder = ShardEncoder(config, groups_of(work))
    prepare_groups(store, encoder.specs())
    with ThreadPoolExecutor(2, thread_name_prefix="shard") as pool:

        def submit(shard: int, groups: tuple[str, ...]) -> Future[ShardResult]:
            return pool.submit(encoder.run, shard, groups, monitor.images)

        try:
            return drive(work, submit, monitor)
        except BaseException:
            encoder.stop.set()
            raise


def drive(
    work: Work, submit: Callable[[int, tuple[str, ...]], Future[ShardResult]], monitor: Monitor
) -> list[FailedShard]:
    """Keep two shards in flight; a shard that fails is tried again, three times in all."""
    waiting = deque((shard, groups, 1) for shard, groups in work)
    running: dict[Future[ShardResult], tuple[int, tuple[str, ...], int]] = {}
    failed = []
    while waiting or running:
        while waiting and len(running) < 2:
            entry = waiting.popleft()
            running[submit(entry[0], entry[1])] = entry
        for future in wait(running, timeout=0.5, return_when=FIRST_COMPLETED).done:
            shard, groups, tried = running.pop(future)
            error = future.exception()
            if error is None:
                monitor.shard(future.result())
            elif isinstance(error, ConfigError | StoreError | StoppedError):
                raise error
            elif tried < TRIES:
                waiting.append((shard, groups, tried + 1))
            else:
                failed.append(FailedShard(shard, f"{type(error).__name__}: {error}"))
    return failed


def groups_of(work: Work) -> tuple[str, ...]:
    """Every group that some shard lacks."""
    return tuple(sorted({group for _, groups in work for group in groups}))


def _shard_images(store: Store, shard: int) -> int:
    return min(store.manifest.shard_size, len(store) - shard * store.manifest.shard_size)


def _finish(config: EncodeConfig, encoded: int, failed: list[FailedShard], seconds: float) -> EncodeResult:
    store = open_store(config.store)  # anew: the commits have changed
    groups = [store.group(name) for name in wanted_groups(config) if name in store.group_names()]
    quarantined = {entry.index: entry for group in groups for entry in group.quarantined}
    if not failed:
        for group in groups:
            remove_leftovers(store.path / group.path)
        write_quarantine(store.path, [quarantined[index] for index in sorted(quarantined)])
    return EncodeResult(
        store=config.store,
        groups={
            group.path: sum(file["bytes"] for commit in group.commits.values() for file in commit.files.values())
            for group in groups
        },
        num_samples=len(store),
        encoded=encoded,
        quarantined=len(quarantined),
        seconds=round(seconds, 1),
        failed=failed,
    )
