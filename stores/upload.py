"""Writing a store behind a URL: it is written to the local folder that mirrors it and uploaded from there.

Object stores have neither rename nor fsync and need neither: a PUT is atomic, and durable once it is acknowledged. The
order is the same as on a disk: the files of a shard, then its commit record.
"""

from __future__ import annotations

import tempfile
from contextlib import closing
from pathlib import Path

import pyarrow as pa

from .files import confined
from .layout import commit_file
from .manifest import Commit, Manifest
from .mirror import Mirror
from .remote import RemoteFiles, is_url, local_folder
from .writer import create_store
from .zarr_metadata import METADATA_FILE

ROOT = METADATA_FILE


def store_exists(location: str) -> bool:
    """Return whether there is a store at `location`, a folder or a URL.

    Raises:
        StoreError: the URL cannot be read.
    """
    if not is_url(location):
        return (local_folder(location) / ROOT).exists()
    with closing(RemoteFiles(location)) as files:
        return bool(files.get([ROOT]))


def create_store_at(location: str, manifest: Manifest, samples: pa.Table) -> None:
    """Create an empty store in a folder or at a URL; see `writer.create_store`.

    At a URL the root's zarr.json is uploaded last, since a store exists if and only if that file does.
    """
    if not is_url(location):
        create_store(local_folder(location), manifest, samples)
        return
    with closing(RemoteFiles(location)) as files, tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "store"
        create_store(folder, manifest, samples)
        created = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
        root = created.pop(ROOT)
        files.put(created)
        files.put({ROOT: root})


def put_group(mirror: Mirror, group: str) -> None:
    """Upload the metadata of a group, and last the root's zarr.json, which lists the group."""
    folder = mirror.folder / group
    paths = [folder.parent / ROOT, *folder.glob(ROOT), *folder.glob(f"*/{ROOT}")]
    mirror.files.put({str(path.relative_to(mirror.folder)): path for path in paths})
    mirror.files.put({ROOT: mirror.folder / ROOT})


def put_shard(mirror: Mirror, commit: Commit) -> None:
    """Upload the files of a shard, then its commit record, and delete the local files.

    Does nothing when files are missing locally: another writer has committed the shard.
    """
    files = {f"{commit.group}/{name}": confined(mirror.folder, f"{commit.group}/{name}") for name in commit.files}
    if not all(path.exists() for path in files.values()):
        return
    record = commit_file(commit.group, commit.shard)
    try:
        mirror.files.put(files)
        mirror.files.put({record: mirror.folder / record})
    except BaseException:
        (mirror.folder / record).unlink()
        raise
    finally:
        for path in files.values():
            path.unlink()
