"""Read a store back against its checksums, and drop the shards that fail.

Damage is reported as narrowly as it is known: down to the sample, where its checksum says so. A shard without commit
record is work for the next encoding, not damage.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from ..errors import StoreError
from .files import fsync_directory
from .layout import COMMITS, LABEL, SAMPLES_FILE, commit_file, num_shards
from .manifest import committed_shards
from .remote import is_url
from .store import Store, open_store
from .verify_shard import DAMAGE, Problem, ShardVerifier


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifyReport:
    """What a verification found."""

    problems: tuple[Problem, ...]
    incomplete: dict[str, list[int]]  # group → shards without commit record: work, not damage
    num_shards: int  # committed shards that were read
    num_bytes: int  # bytes that were read

    @property
    def ok(self) -> bool:
        """Nothing is wrong; shards may still be missing."""
        return not self.problems

    @property
    def bad_shards(self) -> list[tuple[str, int]]:
        """Group and number of every shard that has to be encoded again."""
        return sorted({(p.group, p.shard) for p in self.problems if p.group is not None and p.shard is not None})


def verify_store(
    store_path: str | Path,
    groups: Sequence[str] | None = None,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> VerifyReport:
    """Read every committed shard of `groups` (default: all) and compare it with its checksums.

    Args:
        store_path: the store.
        groups: group paths, such as `features/dinov2-vit-b`.
        workers: threads; default, as many as processors.
        progress: called after every shard with the bytes done and the bytes in all.

    Raises:
        StoreError: there is no store at `store_path`, or it has no such group. Damage is reported, not raised.
    """
    if is_url(str(store_path)):
        raise StoreError(f"{store_path} is a URL: verify the store where it lies on a disk, or a copy of it")
    with open_store(store_path) as store:
        keys, problems = _verify_root(store)
        incomplete: dict[str, list[int]] = {}
        jobs: list[ShardVerifier] = []
        for name in _group_names(store) if groups is None else groups:
            found, missing, shards = _plan_group(store, name, keys)
            problems += found
            incomplete |= {name: missing} if missing else {}
            jobs += shards
        done, total = 0, sum(job.num_bytes for job in jobs)
        with ThreadPoolExecutor(workers or os.cpu_count(), thread_name_prefix="verify") as pool:
            for job, found in zip(jobs, pool.map(ShardVerifier.verify, jobs), strict=True):
                problems += found
                done += job.num_bytes
                if progress is not None:
                    progress(done, total)
    # every shard reports again what is wrong with the metadata of its group
    return VerifyReport(
        problems=tuple(dict.fromkeys(problems)), incomplete=incomplete, num_shards=len(jobs), num_bytes=done
    )


def drop_bad_shards(store_path: str | Path, report: VerifyReport) -> int:
    """Delete the shards that failed, so that encoding does them again; how many there were.

    The commit record goes first: a kill in between leaves a shard that is incomplete, never one that reads wrong.
    """
    store = Path(store_path)
    try:
        for group, shard in report.bad_shards:
            record = store / commit_file(group, shard)
            record.unlink(missing_ok=True)
            fsync_directory(record.parent)
            for folder in (store / group).glob(f"*/c/{shard}"):
                shutil.rmtree(folder)
    except OSError as error:
        raise StoreError(f"{store}: a damaged shard cannot be deleted ({error}): check permissions") from error
    return len(report.bad_shards)


def _group_names(store: Store) -> list[str]:
    """Groups there are, and groups whose commit records are all that is left."""
    committed = {f"{folder.parent.name}/{folder.name}" for folder in (store.path / COMMITS).glob("*/*")}
    return sorted(committed.union(store.group_names()))


def _verify_root(store: Store) -> tuple[pa.ChunkedArray | None, list[Problem]]:
    """Keys of the samples, if they can be read, and what is wrong with index and labels."""
    total = len(store)
    try:
        keys, labels = store.samples.column("key"), store.samples.column("label").to_numpy()
    except DAMAGE as error:
        return None, [Problem(array=SAMPLES_FILE, what=f"cannot be read ({error})")]
    if len(keys) != total:
        return None, [Problem(array=SAMPLES_FILE, what=f"has {len(keys):,} rows, the store has {total:,} samples")]
    try:
        meta = json.loads((store.path / LABEL / "zarr.json").read_bytes())
        if meta["shape"] != [total] or meta["data_type"] != "int32":
            what = f"zarr.json says {meta['shape']} {meta['data_type']}, the store has {total:,} samples"
            return keys, [Problem(array=LABEL, what=what)]
        stored = store.labels
    except DAMAGE as error:
        return keys, [Problem(array=LABEL, what=f"cannot be read ({error})")]
    if len(stored) != total:
        return keys, [Problem(array=LABEL, what=f"holds {len(stored):,} labels, the store has {total:,} samples")]
    wrong = np.flatnonzero(stored != labels).tolist()
    return keys, [
        Problem(array=LABEL, sample=i, key=keys[i].as_py(), what=f"is {stored[i]}, {SAMPLES_FILE} says {labels[i]}")
        for i in wrong
    ]


def _plan_group(
    store: Store, name: str, keys: pa.ChunkedArray | None
) -> tuple[list[Problem], list[int], list[ShardVerifier]]:
    """What is wrong with a group's metadata, its shards without commit, and its shards to read."""
    manifest = store.manifest
    total = num_shards(manifest.num_samples, manifest.shard_size)
    committed = committed_shards(store.path, name)
    try:
        group = store.group(name)
        for reader in group.shard_indexes.values():
            layout = reader.layout
            if not layout.plain:
                raise StoreError(
                    f"{layout.path} is not in the form of docs/store-format.md: another program rewrote it, and the "
                    "commit records do not describe its files"
                )
            if (layout.shape[0], layout.shard_size) != (manifest.num_samples, manifest.shard_size):
                raise StoreError(
                    f"{layout.path / 'zarr.json'} says {layout.shape[0]:,} samples in shards of {layout.shard_size:,}, "
                    f"the store has {manifest.num_samples:,} in shards of {manifest.shard_size:,}"
                )
        jobs = [ShardVerifier(store, group, shard, keys) for shard in range(total) if shard in committed]
    except DAMAGE as error:
        if not committed and name not in store.group_names():
            raise  # a group that never was
        return [Problem(group=name, what=f"its metadata is damaged, so no shard of it was read: {error}")], [], []
    strange = [
        Problem(group=name, what=f"commit record {shard} is of no shard")
        for shard in sorted(committed)
        if shard >= total
    ]
    missing = [shard for shard in range(total) if shard not in committed]
    return strange, missing, jobs
