"""Names inside a store that become names of files and folders. They are checked wherever they are read.

A store may come from anybody. Its names reach the file system when it is cached, extended or repaired, and commands
that messages suggest. Keys of samples and names of classes are free text: they never become paths.
"""

from __future__ import annotations

import re

from ..errors import StoreError

MAX_BYTES = 200  # file systems allow 255, and temporary files have longer names
_NAME = re.compile(r"[\w.+:,@=~%-]([\w.+:,@=~% -]*[\w.+:,@=~%-])?")  # \w: letters and digits of all languages, and _
_SHARD_FILE = re.compile(r"\w+/c/[0-9]+(/0)+")  # ASCII digits
_SHOWN = 60


def check_name(name: str, where: str) -> str:
    """Return a name that may be the name of a file; raise StoreError, naming `where`, for any other."""
    allowed = _NAME.fullmatch(name) and name.strip(".") and ".tmp-" not in name
    if not allowed or len(name.encode()) > MAX_BYTES:
        raise StoreError(
            f"{where}: {name[:_SHOWN]!r} cannot be a name in a store: expected letters, digits, spaces and "
            f"- _ . + : , @ = ~ %, at most {MAX_BYTES} bytes"
        )
    return name


def check_path(path: str, where: str, depth: int) -> str:
    """Return a relative path of at most `depth` names; raise StoreError, naming `where`, for any other."""
    parts = path.split("/")
    if len(parts) > depth:
        raise StoreError(f"{where}: {path[:_SHOWN]!r} is not the path of a group or an array of a store")
    for part in parts:
        check_name(part, where)
    return path


def is_shard_file(name: str) -> bool:
    """Return whether a path relative to a group is that of a file of a shard, such as `tokens/c/17/0/0`."""
    return _SHARD_FILE.fullmatch(name) is not None and len(name.encode()) <= MAX_BYTES
