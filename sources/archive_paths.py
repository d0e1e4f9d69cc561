"""Paths and member names of archives."""

import posixpath
from pathlib import Path, PurePosixPath

from ..errors import SourceError


def split_archive(path: str, kind: str) -> tuple[str, str]:
    """Split `a.zip/train` into the path of the archive and the prefix `train/` of its members.

    Args:
        path: the path of an archive, or of a folder inside one.
        kind: `zip` or `tar`, for errors.

    Raises:
        SourceError: there is no archive.
    """
    archive = Path(path)
    while not archive.exists() and archive != archive.parent:
        archive = archive.parent
    if not archive.is_file():
        found = "is a folder" if Path(path).is_dir() else "does not exist"
        raise SourceError(f"{path} {found}: expected a {kind} archive, or a folder inside one")
    inside = PurePosixPath(path).relative_to(archive).as_posix()
    return str(archive), "" if inside == "." else f"{inside}/"


def normal_name(name: str) -> str:
    """Return a member name as a relative path with slashes: `./a/b`, `/a/b` and `a\\b` are `a/b`.

    Folders keep their final slash.

    Raises:
        SourceError: the name leads out of the archive.
    """
    if not name.startswith((".", "/")) and "/." not in name and "//" not in name and "\\" not in name:
        return name
    plain = posixpath.normpath(name.replace("\\", "/")).lstrip("/")
    if plain.startswith("../"):
        raise SourceError(f"the member {name} leads out of its archive: pack it again")
    return f"{plain}/" if name.endswith(("/", "\\")) else plain
