"""Files that appear whole or not at all."""

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

TEMPORARY = ".tmp-"


def temporary_path(path: Path) -> Path:
    """A name beside `path` that no other writer, thread, process or host uses."""
    return path.with_name(f"{path.name}{TEMPORARY}{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}")


def fsync_directory(folder: Path) -> None:
    """Make a rename in this folder survive a power cut."""
    try:
        _sync(folder)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that know no such thing: SMB, some FUSE
            raise


def atomic_replace(temporary: Path, path: Path) -> None:
    """Rename over what may be there.

    NFS may carry a rename out and lose the answer; the client asks again and is told that the file is gone.
    """
    inode = temporary.stat().st_ino
    try:
        temporary.replace(path)
    except FileNotFoundError:
        if not path.exists() or path.stat().st_ino != inode:
            raise


@contextmanager
def atomic_write(path: Path, durable: bool = False) -> Iterator[Path]:
    """A temporary path to write to, which becomes `path` when the block ends and is gone when it fails.

    With `durable` a power cut can take neither the contents nor the name afterwards.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path)
    try:
        yield temporary
        if durable:
            _sync(temporary)
        atomic_replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    if durable:
        fsync_directory(path.parent)


def atomic_write_bytes(path: Path, data: bytes, durable: bool = True) -> None:
    """Write a small file whole or not at all."""
    with atomic_write(path, durable) as temporary:
        temporary.write_bytes(data)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON file atomically, keys in the order given."""
    atomic_write_bytes(path, (json.dumps(value, indent=1) + "\n").encode())


def remove_leftovers(folder: Path) -> int:
    """Delete temporary files and folders below `folder`, whoever left them; how many there were."""
    return _remove(list(folder.rglob(f"*{TEMPORARY}*")))


def remove_abandoned(folder: Path, name: str = "*") -> int:
    """Delete what processes of this host that are no more left in `folder` of files and folders called `name`."""
    mine = f"{TEMPORARY}{socket.gethostname()}-"
    left = [(path, path.name.rpartition(mine)[2].split("-")[0]) for path in folder.glob(f"{name}{mine}*")]
    return _remove([path for path, pid in left if pid.isdigit() and not Path(f"/proc/{pid}").exists()])


def _remove(leftovers: list[Path]) -> int:
    for path in leftovers:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return len(leftovers)
