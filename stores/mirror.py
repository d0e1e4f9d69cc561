"""A store behind a URL, mirrored by a local folder with the same layout.

Small files (metadata, commit records, labels, shard indices) are fetched on first use. Shard files are sparse: they
have their true size and index. With a cache folder, samples are stored in them, and later epochs read them at the speed
of the local disk.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from ..converter import parse_json, read_json
from ..errors import StoreError
from .files import atomic_write_bytes, confined, remove_abandoned, temporary_path
from .hub import missing_store_hint
from .layout import CRC32C, ROOT_ATTRIBUTE, commit_file
from .metadata_writer import copied_metadata
from .remote import RemoteFiles
from .remote_options import endpoint_hint
from .zarr_metadata import METADATA_FILE


class Mirror:
    """The local folder, and the methods that fetch files into it.

    Args:
        url: the store's URL.
        cache: folder that keeps everything that was read, for this and later processes. None: only metadata is kept,
            until the store is closed.

    Raises:
        StoreError: there is no store at `url`, it cannot be reached, or `cache` holds a previous store of that URL.
    """

    def __init__(self, url: str, cache: Path | None) -> None:
        self.files = RemoteFiles(url)
        self.cache = cache
        self._temporary = _temporary_folder() if cache is None else None
        base = Path(self._temporary.name) if self._temporary else Path(str(cache)).expanduser()
        self.folder = base / sha256(self.files.url.encode()).hexdigest()[:16]
        try:
            self._write_metadata()
        except BaseException:
            self.close()
            raise

    def fetch(self, names: Sequence[str], again: bool = False) -> None:
        """Fetch these files unless they are in the folder, or `again`; skip those that do not exist at the URL."""
        missing = [name for name in names if again or not (self.folder / name).exists()]
        for name, data in self.files.get(missing).items():
            self._write(name, data)

    def fetch_commits(self, group: str, total: int) -> None:
        """Fetch the commit records of a group with `total` shards."""
        self.fetch([commit_file(group, shard) for shard in range(total)])

    def fetch_shard(self, shard: int) -> None:
        """Fetch the current metadata of all groups, and their commit records of a shard."""
        self._write_metadata()
        groups = [path.parent.parent for path in self.folder.glob(f"*/*/{CRC32C}/zarr.json")]
        self.fetch([commit_file(str(group.relative_to(self.folder)), shard) for group in groups])

    def download(self, name: str) -> int:
        """Return a descriptor of a copy of a file, which takes disk space until it is closed."""
        with tempfile.TemporaryFile(dir=self.folder) as file:
            self.files.download(name, file.fileno())
            return os.dup(file.fileno())

    def close(self) -> None:
        """Close connections, and delete the folder unless it is a cache."""
        self.files.close()
        if self._temporary is not None:
            self._temporary.cleanup()

    def _write_metadata(self) -> None:
        """Fetch the root's zarr.json, and write those of all groups and arrays from its consolidated metadata."""
        url = self.files.url
        data = self.files.get([METADATA_FILE]).get(METADATA_FILE)
        if data is None:
            hint = endpoint_hint(url) or missing_store_hint(url)
            raise StoreError(f"no store at {url}: {url}/zarr.json does not exist{hint}")
        root = parse_json(data, f"{url}/zarr.json", StoreError)
        copied = copied_metadata(root, f"{url}/zarr.json")
        found = {METADATA_FILE: root} | {f"{name}/{METADATA_FILE}": meta for name, meta in copied.items()}
        for name, value in found.items():
            path = self.folder / name
            if path.exists() and not _same_store(read_json(path, StoreError), value):
                raise StoreError(f"{self.folder} holds samples of a previous store at {url}: delete that folder")
        for name, value in found.items():
            self._write(name, json.dumps(value).encode())

    def _write(self, name: str, data: bytes) -> None:
        atomic_write_bytes(confined(self.folder, name), data, durable=self.cache is not None)


def _temporary_folder() -> tempfile.TemporaryDirectory[str]:
    """Create a temporary folder, and delete those that killed processes left behind."""
    name = Path(tempfile.gettempdir()) / "repa-pipe"
    remove_abandoned(name.parent, name.name)
    return tempfile.TemporaryDirectory(prefix=temporary_path(name).name)


def _same_store(cached: dict[str, Any], fetched: dict[str, Any]) -> bool:
    """Return whether two versions of a zarr.json describe the same images, weights and shapes."""
    own, other = _attributes(cached), _attributes(fetched)
    if ROOT_ATTRIBUTE in own:
        return bool(own[ROOT_ATTRIBUTE] == other.get(ROOT_ATTRIBUTE))
    shapes = [(meta.get("shape"), meta.get("codecs")) for meta in (cached, fetched)]
    return bool(own.get("fingerprint") == other.get("fingerprint")) and shapes[0] == shapes[1]


def _attributes(meta: dict[str, Any]) -> dict[str, Any]:
    found = meta.get("attributes")
    return found if isinstance(found, dict) else {}
