"""Verify a store against its checksums, and drop damaged shards.

Damage is reported as precisely as possible, down to the sample. A shard without a commit record is not damage: `encode`
writes it again.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from ..errors import RemoteError, StoreError
from .files import confined, fsync_directory
from .layout import COMMITS, CRC32C, LABEL, SAMPLES_FILE, commit_file, num_shards, shard_file
from .manifest import committed_shards
from .remote import RemoteFiles, is_url, local_folder
from .statistics import PERS, read_statistics, statistics_file
from .store import Store, open_store
from .verify_shard import DAMAGE, Problem, ShardVerifier
from .zarr_metadata import read_node


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifyReport:
    """The result of a verification."""

    problems: tuple[Problem, ...]
    incomplete: dict[str, list[int]]  # group → shards without a commit record
    num_shards: int  # number of committed shards that were read
    num_bytes: int  # number of bytes that were read

    @property
    def ok(self) -> bool:
        """Whether there are no problems. Shards may still be missing."""
        return not self.problems

    @property
    def bad_shards(self) -> list[tuple[str, int]]:
        """Group and number of every shard that must be encoded again."""
        return sorted({(p.group, p.shard) for p in self.problems if p.group is not None and p.shard is not None})


def verify_store(
    store_path: str | Path,
    groups: Sequence[str] | None = None,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> VerifyReport:
    """Read every committed shard and compare it with its checksums.

    The files of a store behind a URL are downloaded, verified and deleted, one per thread at a time.

    Args:
        store_path: folder or URL of the store.
        groups: paths of groups, such as `features/dinov2-vit-b`. None: all groups.
        workers: number of threads. None: the number of CPUs.
        progress: called after every shard with the number of bytes that were read, and the total.

    Raises:
        StoreError: there is no store at `store_path`, or it does not have one of the groups. Damage is reported, not
            raised.
        RemoteError: the server cannot be reached.
    """
    with open_store(store_path) as store:
        keys, problems = _verify_root(store)
        incomplete: dict[str, list[int]] = {}
        jobs: list[ShardVerifier] = []
        for name in _group_names(store) if groups is None else groups:
            found, missing, shards = _plan_group(store, name, keys)
            problems += found + _verify_statistics(store, name)
            incomplete |= {name: missing} if missing else {}
            jobs += shards
        done, total = 0, sum(job.num_bytes for job in jobs)
        with ThreadPoolExecutor(workers or os.cpu_count(), thread_name_prefix="verify") as pool:
            for job, found in zip(jobs, pool.map(ShardVerifier.verify, jobs), strict=True):
                problems += found
                done += job.num_bytes
                if progress is not None:
                    progress(done, total)
    # every shard of a group reports the same problems of the metadata
    return VerifyReport(
        problems=tuple(dict.fromkeys(problems)), incomplete=incomplete, num_shards=len(jobs), num_bytes=done
    )


def drop_bad_shards(store_path: str | Path, report: VerifyReport) -> int:
    """Delete the damaged shards of a report, so that `encode` writes them again. Return their number.

    The commit record is deleted first: a kill in between leaves an incomplete shard, never one with wrong samples.
    """
    if is_url(store_path):
        _drop_remote_shards(str(store_path), report)
        return len(report.bad_shards)
    store = local_folder(store_path)
    try:
        for group, shard in report.bad_shards:
            record = confined(store, commit_file(group, shard))
            record.unlink(missing_ok=True)
            fsync_directory(record.parent)
            for folder in (store / group).glob(f"*/c/{shard}"):
                shutil.rmtree(confined(store, str(folder.relative_to(store))))
    except OSError as error:
        raise StoreError(f"{store}: a damaged shard cannot be deleted ({error}): check permissions") from error
    return len(report.bad_shards)


def _drop_remote_shards(url: str, report: VerifyReport) -> None:
    with open_store(url) as store, closing(RemoteFiles(url)) as files:
        for group, shard in report.bad_shards:
            arrays = {array.name: shard_file(array, shard) for array in store.group(group).arrays}
            files.delete([commit_file(group, shard)])
            files.delete(
                [f"{group}/{name}/{file}" for name, file in arrays.items()] + [f"{group}/{CRC32C}/c/{shard}/0"]
            )


def _group_names(store: Store) -> list[str]:
    """Return the groups of the store, including those of which only commit records are left."""
    committed = {f"{folder.parent.name}/{folder.name}" for folder in (store.path / COMMITS).glob("*/*")}
    return sorted(committed.union(store.group_names()))


def _verify_root(store: Store) -> tuple[pa.ChunkedArray | None, list[Problem]]:
    """Verify index and labels. Return the keys of the samples, if readable, and the problems."""
    total = len(store)
    try:
        keys, labels = store.samples.column("key"), store.samples.column("label").to_numpy()
    except RemoteError:
        raise  # no damage
    except DAMAGE as error:
        return None, [Problem(array=SAMPLES_FILE, what=f"cannot be read ({error})")]
    try:
        meta = read_node(store.path / LABEL, "array")
        if meta["shape"] != [total] or meta["data_type"] != "int32":
            what = f"zarr.json has shape and type {meta['shape']} {meta['data_type']}, expected [{total}] int32"
            return keys, [Problem(array=LABEL, what=what)]
        stored = store.labels
    except RemoteError:
        raise
    except DAMAGE as error:
        return keys, [Problem(array=LABEL, what=f"cannot be read ({error})")]
    wrong = np.flatnonzero(stored != labels).tolist()
    return keys, [
        Problem(
            array=LABEL, sample=i, key=keys[i].as_py(), what=f"is {stored[i]}, expected {labels[i]} ({SAMPLES_FILE})"
        )
        for i in wrong
    ]


def _verify_statistics(store: Store, group: str) -> list[Problem]:
    """Return the problems of the recorded statistics of a features group."""
    problems = []
    for per in PERS if group in store and group.startswith("features/") else ():
        try:
            read_statistics(store, group, per)
        except RemoteError:
            raise
        except DAMAGE as error:
            problems.append(Problem(array=statistics_file(group, per), what=f"cannot be read ({error})"))
    return problems


def _plan_group(
    store: Store, name: str, keys: pa.ChunkedArray | None
) -> tuple[list[Problem], list[int], list[ShardVerifier]]:
    """Return the problems of a group's metadata, its uncommitted shards, and its shards to verify."""
    manifest = store.manifest
    total = num_shards(manifest.num_samples, manifest.shard_size)
    committed: set[int] = set()
    try:
        store.fetch_group(name)
        committed = committed_shards(store.path, name)
        group = store.group(name)
        for reader in group.shard_indexes.values():
            layout = reader.layout
            if not layout.plain:
                raise StoreError(
                    f"{layout.path} does not have the form described in docs/store-format.md: another program rewrote "
                    "it, and the commit records do not describe its files"
                )
        jobs = [ShardVerifier(store, group, shard, keys) for shard in range(total) if shard in committed]
    except RemoteError:
        raise
    except DAMAGE as error:
        if not committed and name not in store.group_names():
            raise  # the group never existed
        return [Problem(group=name, what=f"the metadata is damaged, so none of its shards were read: {error}")], [], []
    unknown = [
        Problem(group=name, what=f"commit record {shard} does not belong to a shard")
        for shard in sorted(committed)
        if shard >= total
    ]
    missing = [shard for shard in range(total) if shard not in committed]
    return unknown, missing, jobs
