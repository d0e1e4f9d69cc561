"""Atomic file writes: a file appears under its name complete, or not at all."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import StoreError
from .layout import SAMPLES_FILE

TEMPORARY = ".tmp-"
ABANDONED_AFTER_NS = 24 * 3600 * 10**9


def temporary_path(path: Path) -> Path:
    """Return a name next to `path` that no other writer, thread, process or host uses."""
    return path.with_name(f"{path.name}{TEMPORARY}{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}")


def fsync_directory(folder: Path) -> None:
    """Sync a directory, so that a rename in it survives a power failure."""
    try:
        _fsync(folder)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems without directory fsync: SMB, some FUSE
            raise


def atomic_replace(temporary: Path, path: Path) -> None:
    """Rename `temporary` to `path`, replacing an existing file.

    NFS may perform a rename and lose the reply. The client then retries, and the server reports that the file does not
    exist. The rename counts as done if `path` has the inode of the temporary file.
    """
    inode = temporary.stat().st_ino
    try:
        temporary.replace(path)
    except FileNotFoundError:
        if not path.exists() or path.stat().st_ino != inode:
            raise


def confined(folder: Path, name: str) -> Path:
    """Return `folder / name` for writing.

    Args:
        folder: where the user told to write.
        name: relative path of a file or folder in it, from a store that may come from anybody.

    Raises:
        StoreError: the path leads out of the folder, also through a symbolic link.
    """
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise StoreError(
            f"{path} is not written, since it leads out of {folder}: replace symbolic links in the store by what they "
            "refer to"
        )
    return path


@contextmanager
def atomic_write(path: Path, durable: bool = False) -> Iterator[Path]:
    """Yield a temporary path that is renamed to `path` when the block succeeds, and deleted when it fails.

    Args:
        path: the final path. Missing parent folders are created.
        durable: sync the file and its folder, so that both contents and name survive a power failure.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path)
    try:
        yield temporary
        if durable:
            _fsync(temporary)
        atomic_replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    if durable:
        fsync_directory(path.parent)


def atomic_write_bytes(path: Path, data: bytes, durable: bool = True) -> None:
    """Write a small file atomically."""
    with atomic_write(path, durable) as temporary:
        temporary.write_bytes(data)


def _fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON file atomically, with keys in the given order."""
    atomic_write_bytes(path, (json.dumps(value, indent=1) + "\n").encode())


def remove_leftovers(folder: Path, name: str = "**/*") -> int:
    """Delete temporary files and folders of any host and process. Return their number.

    Args:
        folder: one in which nobody else writes files of this name.
        name: pattern of the final names, with `glob.escape` for a name; by default, of everything below the folder.
    """
    return _remove(list(folder.glob(f"{name}{TEMPORARY}*")))


def remove_abandoned(folder: Path, name: str = "*") -> int:
    """Delete temporary files in `folder` that ended processes left behind. Return their number.

    Those of this host go with their process. Of another host, which may be a container that no longer exists, they go
    when nothing in them has changed for a day, by the clock of the file system.

    Args:
        folder: searched without its subfolders.
        name: pattern of the final names of the files and folders to delete.
    """
    left = list(folder.glob(f"{name}{TEMPORARY}*"))
    if not left:
        return 0
    now = _file_system_time(folder)
    return _remove([path for path in left if _is_abandoned(path, now)])


def _is_abandoned(path: Path, now: int) -> bool:
    host, _, process = path.name.rpartition(TEMPORARY)[2].rpartition("-")[0].rpartition("-")
    if host == socket.gethostname():
        return process.isdigit() and not Path(f"/proc/{process}").exists()
    try:
        return now - last_change(path) > ABANDONED_AFTER_NS
    except FileNotFoundError:  # its writer has just finished
        return False


def _file_system_time(folder: Path) -> int:
    """Return the current time in ns, as the file system or its server records it."""
    probe = temporary_path(folder / "clock")
    try:
        probe.touch()
        return probe.stat().st_mtime_ns
    finally:
        probe.unlink(missing_ok=True)


def _remove(leftovers: list[Path]) -> int:
    for path in leftovers:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return len(leftovers)


def last_change(path: Path) -> int:
    """Return when a file, a store's images, or anything in a folder has last changed, in ns; 0 if it is missing."""
    if (path / SAMPLES_FILE).exists():  # encoding more groups of a store does not change its images
        path /= SAMPLES_FILE
    if not path.is_dir():
        return path.stat().st_mtime_ns if path.exists() else 0
    return max(Path(folder, name).stat().st_mtime_ns for folder, _, names in os.walk(path) for name in (*names, "."))
