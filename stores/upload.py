"""Writing a store behind a URL: made like any other in the folder that mirrors it, and put from there file by file.

A bucket knows neither rename nor fsync, and needs neither: an object appears whole or not at all, and is safe when the
PUT is answered. The order is the disk's: a shard's files, then its commit record.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import pyarrow as pa

from .layout import commit_file
from .manifest import Commit, Manifest
from .mirror import Mirror
from .remote import RemoteFiles, is_url
from .writer import create_store

ROOT = "zarr.json"


def store_exists(where: str) -> bool:
    """Whether a store stands there: a folder or a URL. StoreError when a URL cannot be asked."""
    return bool(RemoteFiles(where).get([ROOT])) if is_url(where) else (Path(where) / ROOT).exists()


def create_store_at(where: str, manifest: Manifest, samples: pa.Table) -> None:
    """`writer.create_store` in a folder or at a URL, where its root comes last: a store is there when that is."""
    if not is_url(where):
        create_store(Path(where), manifest, samples)
        return
    files = RemoteFiles(where)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "store"
        create_store(folder, manifest, samples)
        made = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
        root = made.pop(ROOT)
        files.put(made)
        files.put({ROOT: root})


def put_group(mirror: Mirror, group: str) -> None:
    """Put the metadata of a group; the root, which lists it, last."""
    folder = mirror.folder / group
    paths = [folder.parent / ROOT, *folder.glob(ROOT), *folder.glob(f"*/{ROOT}")]
    mirror.files.put({str(path.relative_to(mirror.folder)): path for path in paths})
    mirror.files.put({ROOT: mirror.folder / ROOT})


def put_shard(mirror: Mirror, commit: Commit) -> None:
    """Put the files of a shard, then its record, and remove the files here; not those that another writer has put."""
    files = {f"{commit.group}/{name}": mirror.folder / commit.group / name for name in commit.files}
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
