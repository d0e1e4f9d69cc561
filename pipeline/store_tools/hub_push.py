"""`repa-pipe store push`: upload a store to a dataset repository of the Hugging Face Hub.

Every shard is uploaded together with its commit record, in one atomic commit of the repository per batch of shards. The
metadata come last: until then, the repository has no zarr.json, or one that does not list the new groups.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ...converter import parse_json
from ...errors import ConfigError, RemoteError, StoreError
from ...stores import Store, open_store
from ...stores.checksum import crc32c
from ...stores.hub import DATASET, FileDigests, HubFile, HubLocation, attempt, client, list_files
from ...stores.hub_layout import chosen_groups, chosen_shards, metadata_files, require_limits, shard_paths
from ...stores.layout import ROOT_ATTRIBUTE
from ...stores.manifest import FileRecord
from ...stores.metadata_writer import COPY, copied_metadata
from ...stores.remote import is_url
from ...stores.zarr_metadata import METADATA_FILE
from ..reporting.tables import count_text
from ..runtime.progress import Progress, progress
from ..runtime.sizes import bytes_text
from .hub_card import CARD, Pushed, card_of, license_of

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd

BATCH_FILES = 200  # files per commit of the repository; regular ones, of up to 50 KB, travel in one request
BATCH_BYTES = 5 * 10**9
HASHERS = 4  # threads; hashlib and crc32c release the GIL
READ_BYTES = 1 << 22

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class PushOptions:
    """What to upload, and what the data card says."""

    license: str | None = None
    private: bool = False
    groups: tuple[str, ...] = ()
    shards: str | None = None
    citation: str | None = None


class _LocalFile(NamedTuple):
    """A file to upload: a path, or the content."""

    name: str
    source: Path | bytes
    record: FileRecord | None = None  # of the commit record


class _Hashed(NamedTuple):
    file: _LocalFile
    digests: FileDigests

    @property
    def size(self) -> int:
        return self.digests.size

    def is_same(self, found: HubFile | None) -> bool:
        """Return whether the repository has this file."""
        return self.digests.are_of(found)


def push(path: str, target: str, options: PushOptions) -> str:
    """Upload a store, and compare what the Hub lists with what was read. Return a description of what was done.

    Args:
        path: folder of the store.
        target: hf://datasets/USER/NAME, or with @BRANCH.
        options: what to upload.

    Raises:
        ConfigError: no license was given, or the target is not a branch.
        StoreError: the store is damaged, the repository holds another store, or the Hub does not take so many files.
        RemoteError: the Hub cannot be reached or refuses access.
    """
    location = HubLocation.parse(target)
    if location.is_pinned:
        raise ConfigError(f"{target} is a commit: expected a branch, hf://datasets/{location.repo}@BRANCH")
    if is_url(path):
        raise StoreError(f"{path} is a URL: push from a folder")
    with open_store(path) as store:
        return _Push(store, HubLocation(location.repo, location.revision or "main"), options).run()


class _Push:
    def __init__(self, store: Store, location: HubLocation, options: PushOptions) -> None:
        self._store, self._location, self._options = store, location, options
        self._api = client()
        self._groups = chosen_groups(options.groups, store.group_names(), store.location)
        self._shards = chosen_shards(options.shards, len(store), store.manifest.shard_size)
        self._there: dict[str, HubFile] = {}
        self._head: str | None = None
        self._checked: list[_Hashed] = []
        self._uploaded = self._uploaded_bytes = 0

    def run(self) -> str:
        attempt(str(self._location), self._api.whoami)  # a wrong token is reported before anything is read
        card, root = self._read_repository()
        chosen = license_of(card, self._options.license, str(self._location))
        self._require_same_store(root)
        shards = [(group, shard) for group in self._groups for shard in self._committed(group)]
        self._require_limits(shards)
        self._create_repository()
        with progress("push", self._num_bytes(shards), "bytes") as bar:
            for batch in self._batches(shards, bar):
                self._commit(batch, f"Add {count_text(len(batch), 'file', 'files')} of {self._store.path.name}")
        self._commit(self._hash(self._last_files(root, card, chosen)), f"Describe {self._store.path.name}")
        self._compare()
        return self._describe(len(shards))

    def _num_bytes(self, shards: Iterable[tuple[str, int]]) -> int:
        commits = (self._store.group(group).commits[shard] for group, shard in shards)
        return sum(record["bytes"] for commit in commits for record in commit.files.values())

    def _committed(self, group: str) -> Iterator[int]:
        return (shard for shard in self._store.group(group).commits if shard in self._shards)

    def _read_repository(self) -> tuple[str | None, dict[str, object] | None]:
        """Read what the branch has. Return its data card and root zarr.json, if any."""
        location = str(self._location)
        if not attempt(location, lambda: self._api.repo_exists(self._location.repo, repo_type=DATASET)):
            return None, None
        refs = attempt(location, lambda: self._api.list_repo_refs(self._location.repo, repo_type=DATASET))
        self._head = next((ref.target_commit for ref in refs.branches if ref.name == self._location.revision), None)
        if self._head is None:
            return None, None
        self._there = list_files(HubLocation(self._location.repo, self._head))
        card, root = self._fetch(CARD), self._fetch(METADATA_FILE)
        return card, None if root is None else parse_json(root.encode(), f"{location}/{METADATA_FILE}", StoreError)

    def _fetch(self, name: str) -> str | None:
        if name not in self._there:
            return None
        path = attempt(
            str(self._location),
            lambda: self._api.hf_hub_download(self._location.repo, name, repo_type=DATASET, revision=self._head),
        )
        return Path(path).read_text(encoding="utf-8")

    def _require_same_store(self, root: dict[str, object] | None) -> None:
        """Raise StoreError if the repository holds another store, or a group of another model."""
        if root is None:
            return
        where = f"{self._location}/{METADATA_FILE}"
        own = parse_json((self._store.path / METADATA_FILE).read_bytes(), str(self._store.path), StoreError)
        if _attributes(root).get(ROOT_ATTRIBUTE) != _attributes(own)[ROOT_ATTRIBUTE]:
            raise StoreError(f"{self._location} holds a store of other images: choose another repository or branch")
        copied = copied_metadata(root, where)
        for group in self._groups:
            found = _attributes(copied.get(group, {})).get("fingerprint")
            if group in copied and found != self._store.group(group).fingerprint:
                raise StoreError(
                    f"{self._location}: {group} was encoded with something else: choose another repository"
                )

    def _require_limits(self, shards: Sequence[tuple[str, int]]) -> None:
        sizes: dict[str, int] = {}
        paths = {*self._there, CARD, *metadata_files(self._store, self._groups)}
        for group, shard in shards:
            files = self._store.group(group).commits[shard].files
            paths.update(shard_paths(group, shard, files))
            sizes |= {f"{group}/{name}": record["bytes"] for name, record in files.items()}
        if warning := require_limits(paths, sizes, len(self._store)):
            logger.warning("%s: %s", self._location, warning)

    def _create_repository(self) -> None:
        repo, branch, where = self._location.repo, str(self._location.revision), str(self._location)
        private = self._options.private or None  # None: as the account is set up
        attempt(where, lambda: self._api.create_repo(repo, repo_type=DATASET, private=private, exist_ok=True))
        if self._head is None and branch != "main":
            attempt(where, lambda: self._api.create_branch(repo, branch=branch, repo_type=DATASET, exist_ok=True))
        if self._head is None:
            info = attempt(where, lambda: self._api.repo_info(repo, repo_type=DATASET, revision=branch))
            self._head = info.sha
            self._there = list_files(HubLocation(repo, self._head))

    def _batches(self, shards: Sequence[tuple[str, int]], bar: Progress) -> Iterator[list[_Hashed]]:
        """Yield the files that the repository lacks, whole shards with their commit records, in batches."""
        batch: list[_Hashed] = []
        for group, shard in shards:
            hashed = self._hash(self._files_of(group, shard))
            batch += [file for file in hashed if not file.is_same(self._there.get(file.file.name))]
            bar.update(sum(file.size for file in hashed if file.file.record is not None))
            if len(batch) >= BATCH_FILES or sum(file.size for file in batch) >= BATCH_BYTES:
                yield batch
                batch = []
        yield batch

    def _files_of(self, group: str, shard: int) -> list[_LocalFile]:
        files = self._store.group(group).commits[shard].files
        *names, record = shard_paths(group, shard, files)
        data = [_LocalFile(name, self._store.path / name, files[name.removeprefix(f"{group}/")]) for name in names]
        return [*data, _LocalFile(record, self._store.path / record)]

    def _hash(self, files: Iterable[_LocalFile]) -> list[_Hashed]:
        with ThreadPoolExecutor(HASHERS, thread_name_prefix="push") as pool:
            hashed = list(pool.map(_hash_file, files))
        self._checked += hashed
        return hashed

    def _last_files(self, root: dict[str, object] | None, card: str | None, chosen: str) -> list[_LocalFile]:
        """Return what makes the store complete: metadata, labels and index, the data card, and last the root."""
        folder = self._store.path
        *names, _ = metadata_files(self._store, self._groups)
        before = {} if root is None else copied_metadata(root, str(self._location))
        pushed = Pushed(str(self._location), self._shards_by_group(before))
        text = card_of(card, self._store, pushed, chosen, self._options.citation)
        return [
            *(_LocalFile(name, folder / name) for name in names),
            *([] if text is None else [_LocalFile(CARD, text.encode())]),
            _LocalFile(METADATA_FILE, _root_of(folder, self._groups, before)),
        ]

    def _shards_by_group(self, before: Iterable[str]) -> dict[str, frozenset[int]]:
        """Return the shards that the repository has after this push, of the groups that it lists."""
        groups = {*self._groups, *(name for name in before if re.fullmatch("(latents|features)/[^/]+", name))}
        shards = {group: {*self._committed(group)} if group in self._groups else set[int]() for group in groups}
        for path in self._there:
            if found := re.fullmatch(r"commits/([^/]+/[^/]+)/(\d+)\.json", path):
                shards.get(found[1], set()).add(int(found[2]))
        return {group: frozenset(shards[group]) for group in sorted(shards, key=lambda name: (name[0] != "l", name))}

    def _commit(self, hashed: Sequence[_Hashed], message: str) -> None:
        """Commit the files that the repository lacks, all or none of them."""
        missing = [file for file in hashed if not file.is_same(self._there.get(file.file.name))]
        if not missing:
            return
        operations = [_operation(file) for file in missing]
        try:
            commit = attempt(
                str(self._location),
                lambda: self._api.create_commit(
                    self._location.repo,
                    operations,
                    commit_message=message,
                    repo_type=DATASET,
                    revision=self._location.revision,
                    parent_commit=self._head,
                ),
            )
            self._head = commit.oid
        except RemoteError:
            if not self._has_arrived(missing):
                raise
        self._uploaded += len(missing)
        self._uploaded_bytes += sum(file.size for file in missing)

    def _has_arrived(self, files: Sequence[_Hashed]) -> bool:
        """Return whether a commit was made whose answer was lost."""
        found = list_files(self._location)
        if not all(file.is_same(found.get(file.file.name)) for file in files):
            return False
        info = attempt(
            str(self._location),
            lambda: self._api.repo_info(self._location.repo, repo_type=DATASET, revision=self._location.revision),
        )
        self._head = info.sha
        return True

    def _compare(self) -> None:
        """Raise StoreError unless the Hub lists every file with the size and checksum of what was read."""
        found = list_files(HubLocation(self._location.repo, self._head))
        wrong = [file.file.name for file in self._checked if not file.is_same(found.get(file.file.name))]
        if wrong:
            raise StoreError(
                f"{self._location}: {count_text(len(wrong), 'file differs', 'files differ')} from the store, first "
                f"{wrong[0]}: re-run the same command to upload them again"
            )

    def _describe(self, shards: int) -> str:
        location = HubLocation(self._location.repo, self._head)
        files = count_text(self._uploaded, "file", "files")
        done = f"uploaded {files} ({bytes_text(self._uploaded_bytes)})" if self._uploaded else "nothing to upload"
        return (
            f"{location}: {done}; {count_text(shards, 'shard', 'shards')} of {', '.join(self._groups) or 'no group'}, "
            f"all {len(self._checked):,} files match by size and checksum\n{location.page}"
        )


def _attributes(meta: Mapping[str, object]) -> dict[str, object]:
    found = meta.get("attributes")
    return found if isinstance(found, dict) else {}


def _hash_file(file: _LocalFile) -> _Hashed:
    """Read a file once; raise StoreError if it is not as its commit record says."""
    if isinstance(file.source, bytes):
        digests = FileDigests(len(file.source))
        digests.update(file.source)
        return _Hashed(file, digests)
    import numpy as np

    digests, checksum, read = FileDigests(file.source.stat().st_size), 0, 0
    with file.source.open("rb") as opened:
        while part := opened.read(READ_BYTES):
            digests.update(part)
            checksum, read = crc32c(np.frombuffer(part, np.uint8), checksum), read + len(part)
    if file.record is not None and file.record != {"bytes": read, "crc32c": checksum}:
        raise StoreError(
            f"{file.source} fails its checksum: damaged shards are not uploaded; run 'repa-pipe store repair' first"
        )
    return _Hashed(file, digests)


def _operation(hashed: _Hashed) -> CommitOperationAdd:
    from huggingface_hub import CommitOperationAdd

    return CommitOperationAdd(path_in_repo=hashed.file.name, path_or_fileobj=hashed.file.source)


def _root_of(folder: Path, groups: Sequence[str], before: Mapping[str, dict[str, object]]) -> bytes:
    """Return the root's zarr.json that lists these groups and those that the repository lists already."""
    root = parse_json((folder / METADATA_FILE).read_bytes(), str(folder / METADATA_FILE), StoreError)
    listed = dict(before)
    kinds = {group.split("/")[0] for group in groups}
    for name, meta in copied_metadata(root, str(folder)).items():
        if "/".join(name.split("/")[:2]) in groups or name in kinds or not name.startswith(("latents", "features")):
            listed[name] = meta
    root[COPY]["metadata"] = listed
    return (json.dumps(root, indent=1) + "\n").encode()
