"""The central directory of a zip archive: names, sizes and positions of its members."""

import struct
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path

from ..errors import SourceError
from .archive_paths import normal_name

_END = struct.Struct("<4sHH")  # signature, number of this disk, disk of the central directory (APPNOTE.TXT, 4.3.16)
_MAX_END = 22 + 65_535  # bytes of the end record with the longest comment
_ZIP64 = 0xFFFF  # "see the zip64 record"
_METHODS = {1: "Shrink", 6: "Implode", 9: "Deflate64", 12: "BZIP2", 14: "LZMA", 93: "Zstandard", 95: "XZ", 98: "PPMd"}

MAX_MEMBER_BYTES = 1 << 30
"""Size of a member other than an image that is read as a whole: the labels."""

STORED, DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED


def open_archive(path: str) -> zipfile.ZipFile:
    """Open an archive.

    Raises:
        SourceError: it is not a zip archive, is damaged, or is one part of several.
    """
    try:
        if _is_part(path):
            raise _one_of_several(path)
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
        if "multiple disks" in str(error):
            raise _one_of_several(path) from None
        raise SourceError(f"{path} is not a readable zip archive ({error}): copy or download it again") from None


def members_by_name(
    path: str, members: Iterable[zipfile.ZipInfo], inside: str, normal: bool
) -> dict[str, zipfile.ZipInfo]:
    """Return the members below a folder of the archive by their names relative to it.

    Args:
        path: the source, for errors.
        members: all members.
        inside: the folder with a final slash, or an empty string.
        normal: whether names are normalized.

    Raises:
        SourceError: two members have the same name, or a name leads out of the archive.
    """
    found: dict[str, zipfile.ZipInfo] = {}
    for member in members:
        name = normal_name(member.filename) if normal else member.filename
        if not name.startswith(inside) or name == inside or (normal and name == "./"):
            continue
        key = name.removeprefix(inside)
        if key in found:
            raise SourceError(f"{path} contains several members with the same name ({key}): pack it again")
        found[key] = member
    return found


def require_readable(path: str, member: zipfile.ZipInfo) -> None:
    """Raise SourceError for a member that is encrypted or compressed in a way that is not supported."""
    if member.flag_bits & 1:
        raise SourceError(
            f"{member.filename} in {path} is encrypted: unpack the archive with its password (unzip or 7z x), and use "
            "the folder as the source"
        )
    method = member.compress_type
    if method not in (STORED, DEFLATED):
        raise SourceError(
            f"{member.filename} in {path} uses compression method {method} ({_METHODS.get(method, 'unknown')}): "
            f"expected 0 (stored) or 8 (deflated); unpack the archive (7z x), and use the folder as the source"
        )


def read_member(path: str, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """Read a member; raise SourceError if it is damaged, too large, encrypted or compressed by an unknown method."""
    require_readable(path, member)
    if member.file_size > MAX_MEMBER_BYTES:  # zipfile reads no more than the size that is stated
        raise SourceError(
            f"{member.filename} in {path} has {member.file_size:,} bytes: expected at most {MAX_MEMBER_BYTES:,}"
        )
    try:
        return archive.read(member)
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError) as error:
        raise SourceError(f"{member.filename} in {path} cannot be read ({error})") from None


def _is_part(path: str) -> bool:
    """Return whether the archive is split into several files, of which this is the last."""
    with open(path, "rb") as file:  # noqa: PTH123
        file.seek(max(0, Path(path).stat().st_size - _MAX_END))
        end = file.read()
    start = end.rfind(b"PK\5\6")
    if start < 0 or len(end) - start < _END.size:
        return False
    _, disk, first = _END.unpack_from(end, start)
    return (disk, first) not in ((0, 0), (_ZIP64, _ZIP64), (0, _ZIP64), (_ZIP64, 0))


def _one_of_several(path: str) -> SourceError:
    return SourceError(
        f"{path} is one part of a zip archive that is split into several files: join them first, for example with "
        f"'zip -s 0 {Path(path).name} --out joined.zip'"
    )
