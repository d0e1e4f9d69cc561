"""`repa-pipe store pull`: download a store, or parts of it, from a dataset repository of the Hugging Face Hub.

A shard appears as in `encode`: its files, compared with the commit record, and then the record. A pull that was stopped
is therefore a store with fewer shards, and the same command continues.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...converter import read_json
from ...errors import ConfigError, RemoteError, StoreError
from ...stores.checksum import crc32c
from ...stores.files import TEMPORARY, confined, fsync_directory, write_json
from ...stores.hub import DATASET, PULLED_FILE, HubFile, HubLocation, attempt, client, list_files, pinned
from ...stores.hub import missing_store_hint as store_hint
from ...stores.hub_layout import chosen_groups, chosen_shards
from ...stores.layout import LABEL, QUARANTINE_FILE, ROOT_ATTRIBUTE, SAMPLES_FILE, commit_file
from ...stores.manifest import Commit, FileRecord, Manifest, read_commit
from ...stores.metadata_writer import consolidate, copied_metadata
from ...stores.remote import is_url, local_folder
from ...stores.statistics import PERS, statistics_file
from ...stores.zarr_metadata import METADATA_FILE
from ..reporting.tables import count_text
from ..runtime.full_disk import free_bytes, is_disk_full
from ..runtime.progress import Progress, progress
from ..runtime.sizes import bytes_text

THREADS = 8  # files in flight
TRIES = 2  # downloads of a file whose checksum is wrong
READ_BYTES = 1 << 22
STAGING = f"pull{TEMPORARY}hub"  # in the store: files on their way, which the same command continues


@dataclass(frozen=True, kw_only=True, slots=True)
class PullOptions:
    """What to download."""

    groups: tuple[str, ...] = ()
    shards: str | None = None
    labels_only: bool = False  # the sample index and the labels, without any group


def pull(target: str, path: str, options: PullOptions) -> str:
    """Download a store into a folder. Return a description of what was done.

    Args:
        target: hf://datasets/USER/NAME, or with @REVISION.
        path: folder, new or of an earlier pull of the same store.
        options: what to download.

    Raises:
        ConfigError: `target` has another form, the shards do not exist, or the options contradict each other.
        StoreError: the repository holds no store, or a damaged or unfinished one; the folder holds another store.
        RemoteError: the Hub cannot be reached or refuses access.
    """
    if options.labels_only and (options.groups or options.shards):
        raise ConfigError("--labels-only downloads no groups: remove --group and --shards")
    if is_url(path):
        raise StoreError(f"{path} is a URL: pull into a folder")
    requested, folder = HubLocation.parse(target), local_folder(path)
    job = _Pull(requested, HubLocation.parse(pinned(target)), folder, options)
    try:
        return job.run()
    except OSError as error:
        if not is_disk_full(error):
            raise
        raise StoreError(
            f"the disk of {folder} is full: free some space, then re-run the same command, which keeps what is complete"
        ) from error


class _Pull:
    def __init__(self, requested: HubLocation, location: HubLocation, folder: Path, options: PullOptions) -> None:
        self._requested, self._location, self._folder, self._options = requested, location, folder, options
        self._staging = folder / STAGING
        self._api = client()
        self._there: dict[str, HubFile] = {}
        self._fetched = self._kept = 0

    def run(self) -> str:
        self._there = list_files(self._location)
        if METADATA_FILE not in self._there:
            raise StoreError(f"no store at {self._location}: it has no zarr.json{store_hint(str(self._location))}")
        existed = self._folder.exists()
        try:
            return self._run()
        except BaseException:
            if not existed and not (self._folder / METADATA_FILE).exists():
                shutil.rmtree(self._folder, ignore_errors=True)  # no store yet, and no folder before
            raise

    def _run(self) -> str:
        root = read_json(self._download(METADATA_FILE), StoreError)
        manifest = Manifest.from_attributes(root.get("attributes", {}), self._staging)
        copied = copied_metadata(root, f"{self._location}/{METADATA_FILE}")
        names = [name for name in copied if name.count("/") == 1 and name.startswith(("latents/", "features/"))]
        groups = chosen_groups(self._options.groups, sorted(names, reverse=True), str(self._location))
        groups = [] if self._options.labels_only else groups
        shards = chosen_shards(self._options.shards, manifest.num_samples, manifest.shard_size)
        self._require_same_store(root, copied, groups)
        jobs = [(group, shard) for group in groups for shard in shards if commit_file(group, shard) in self._there]
        self._require_space(jobs)
        self._write_metadata(groups, copied)
        self._pull_shards(jobs)
        consolidate(self._folder)
        shutil.rmtree(self._staging, ignore_errors=True)
        return self._describe(groups, [name for name in names if name not in groups], len(shards))

    def _require_same_store(
        self, root: Mapping[str, Any], copied: Mapping[str, dict[str, Any]], groups: Sequence[str]
    ) -> None:
        """Raise StoreError if the folder holds something else."""
        if not (self._folder / METADATA_FILE).exists():
            others = [name for name in os.listdir(self._folder) if name != STAGING]
            if others:
                raise StoreError(f"{self._folder} holds other files, such as {others[0]}: choose a new or empty folder")
            return
        own = read_json(self._folder / METADATA_FILE, StoreError).get("attributes", {})
        if own.get(ROOT_ATTRIBUTE) != root["attributes"][ROOT_ATTRIBUTE]:
            raise StoreError(f"{self._folder} holds another store than {self._location}: choose another folder")
        for group in groups:
            path = self._folder / group / METADATA_FILE
            if path.exists():
                found = read_json(path, StoreError).get("attributes", {}).get("fingerprint")
                if found != copied[group].get("attributes", {}).get("fingerprint"):
                    raise StoreError(
                        f"{self._folder}/{group} was encoded with something else than {self._location} has"
                    )

    def _require_space(self, jobs: Sequence[tuple[str, int]]) -> None:
        wanted = {
            (group, str(shard)) for group, shard in jobs if not (self._folder / commit_file(group, shard)).exists()
        }
        needed = sum(
            file.size
            for path, file in self._there.items()
            if (parts := path.split("/"))[0] in ("latents", "features")
            and len(parts) > 4
            and ("/".join(parts[:2]), parts[4]) in wanted
        )
        free = free_bytes(self._folder)
        if needed > free:
            raise StoreError(
                f"{self._folder} needs {bytes_text(needed)}, and {bytes_text(free)} are free: free some space, choose "
                "a folder on a larger disk, or pull fewer groups (--group) or shards (--shards)"
            )

    def _write_metadata(self, groups: Sequence[str], copied: Mapping[str, dict[str, Any]]) -> None:
        """Write index, labels and groups; the root, which makes the folder a store, last."""
        single = [SAMPLES_FILE, QUARANTINE_FILE, f"{LABEL}/c/0"]
        single += [statistics_file(group, per) for group in groups for per in PERS if group.startswith("features/")]
        for name in single:
            if name in self._there and self._there[name].size != _size(self._folder / name):
                self._place(name)
        kinds = {group.split("/")[0] for group in groups}
        for name, meta in copied.items():
            if name == LABEL or name in kinds or "/".join(name.split("/")[:2]) in groups:
                path = self._folder / name / METADATA_FILE
                if not path.exists() or read_json(path, StoreError) != meta:
                    self._place(f"{name}/{METADATA_FILE}")
        origin = {"origin": str(self._requested), "revision": self._location.revision}
        write_json(self._folder / PULLED_FILE, origin)
        if not (self._folder / METADATA_FILE).exists():
            self._place(METADATA_FILE)
        consolidate(self._folder)

    def _pull_shards(self, jobs: Sequence[tuple[str, int]]) -> None:
        pool = ThreadPoolExecutor(THREADS, thread_name_prefix="pull")
        try:
            with progress("pull", len(jobs), "shards") as bar:
                calls = [pool.submit(self._pull_shard, group, shard, bar) for group, shard in jobs]
                wait(calls, return_when=FIRST_EXCEPTION)
                for call in calls:
                    if call.done():
                        call.result()
        finally:
            # downloads in flight are waited for, unless the user interrupts
            pool.shutdown(wait=isinstance(sys.exception(), Exception | None), cancel_futures=True)

    def _pull_shard(self, group: str, shard: int, bar: Progress) -> None:
        """Download a shard unless the folder has it with the same record."""
        name = commit_file(group, shard)
        staged = self._download(name)
        commit = read_commit(self._staging, group, shard)
        if commit is None or (commit.group, commit.shard) != (group, shard):
            raise StoreError(f"{self._location}/{name} is not the record of that shard: push the store again")
        if self._is_here(commit, staged):
            self._kept += 1
        else:
            (self._folder / name).unlink(missing_ok=True)  # its files are about to be replaced
            for file, record in commit.files.items():
                self._place(f"{group}/{file}", record)
            _move(staged, confined(self._folder, name))
            self._fetched += 1
        bar.update()

    def _is_here(self, commit: Commit, staged: Path) -> bool:
        record = self._folder / commit_file(commit.group, commit.shard)
        if not record.exists() or record.read_bytes() != staged.read_bytes():
            return False
        sizes = {name: _size(self._folder / commit.group / name) for name in commit.files}
        return all(sizes[name] == file["bytes"] for name, file in commit.files.items())

    def _place(self, name: str, record: FileRecord | None = None) -> None:
        """Download a file, compare it with its record, and move it to its place."""
        for _ in range(TRIES):
            staged = self._download(name)
            if record is None or _record_of(staged) == record:
                _move(staged, confined(self._folder, name))
                return
            staged.unlink()
        raise StoreError(f"{self._location}/{name} fails its checksum (commit record): push the store again")

    def _download(self, name: str) -> Path:
        """Download a file into the staging folder, or continue a download; return its path."""
        if name not in self._there:
            raise StoreError(
                f"{self._location}/{name} does not exist, although a record lists it: push the store again"
            )
        self._staging.mkdir(parents=True, exist_ok=True)

        def fetch() -> Path:
            return Path(
                self._api.hf_hub_download(
                    self._location.repo,
                    name,
                    repo_type=DATASET,
                    revision=self._location.revision,
                    local_dir=self._staging,
                )
            )

        path = attempt(str(self._location), fetch)
        if path.stat().st_size != self._there[name].size:
            path.unlink()
            raise RemoteError(f"{self._location}/{name} arrived incomplete: re-run the same command to resume")
        return path

    def _describe(self, groups: Sequence[str], left_out: Sequence[str], shards: int) -> str:
        done = f"{count_text(self._fetched, 'shard', 'shards')} downloaded, {self._kept:,} already there"
        lines = [f"{self._folder}: {', '.join(groups) or 'no group'} from {self._location}; {done}"]
        for group in groups:
            present = len([path for path in self._there if path.startswith(f"commits/{group}/")])
            if present < shards:
                lines.append(f"{group} has {present:,} shards there: the store was pushed in part")
        if left_out:
            lines.append(f"left out: {', '.join(left_out)}; re-run with --group to add them")
        return "\n".join(lines)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1


def _record_of(path: Path) -> FileRecord:
    size, checksum = 0, 0
    with path.open("rb") as file:
        while part := file.read(READ_BYTES):
            size, checksum = size + len(part), crc32c(np.frombuffer(part, np.uint8), checksum)
    return {"bytes": size, "crc32c": checksum}


def _move(staged: Path, path: Path) -> None:
    """Move a file to its place; it is on disk under its name afterwards."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with staged.open("rb") as file:
        os.fsync(file.fileno())
    staged.replace(path)
    fsync_directory(path.parent)
