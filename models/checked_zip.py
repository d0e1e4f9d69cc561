"""The checksums of zip files, which torch and numpy write and never or not always verify when they read.

The directory at the end of a zip file has a CRC-32 of every file in it. Together they identify the content without
reading it. `torch.load` verifies none of them.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_HEADER = struct.Struct("<4s22xHH")  # of a file: signature, length of its name, length of the extra field
_NO_ZIP = (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error)
_BLOCK = 4 << 20
_THREADS = 8


def zip_digest(path: Path) -> str | None:
    """Return a digest of the names, sizes and checksums of the files in a zip file; its data are not read.

    None for other files, damaged ones, and those that torch wrote without checksums. Raises OSError.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [(each.filename, each.file_size, each.CRC) for each in archive.infolist()]
    except _NO_ZIP:
        return None
    has_checksums = any(crc for _, _, crc in entries)
    return hashlib.sha256(json.dumps(entries).encode()).hexdigest() if has_checksums else None


def find_damage(path: Path) -> str | None:
    """Read all of a zip file; return the first difference from its checksums in words, or None.

    A file that was written without checksums has no difference. `benchmarks/verify_checkpoint.py` measures the cost.

    Raises:
        OSError: the file cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if not any(each.CRC for each in entries):
                return None
            packed = [each for each in entries if each.compress_type != zipfile.ZIP_STORED]
            found = next((each.filename for each in packed if not _unpacks(archive, each)), None)
    except _NO_ZIP as error:
        return str(error)
    if found is not None:
        return f"checksum mismatch in {found}"
    stored = [each for each in entries if each.compress_type == zipfile.ZIP_STORED]
    with path.open("rb") as file, ThreadPoolExecutor(_THREADS) as pool:
        results = pool.map(lambda each: _is_intact(file.fileno(), each), stored)
        wrong = [each.filename for each, intact in zip(stored, results, strict=True) if not intact]
    return f"checksum mismatch in {wrong[0]}" if wrong else None


def _unpacks(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bool:
    try:
        with archive.open(entry) as file:
            while file.read(_BLOCK):
                pass
    except (zipfile.BadZipFile, zlib.error, EOFError):
        return False
    return True


def _is_intact(fd: int, entry: zipfile.ZipInfo) -> bool:
    """Return whether a stored file has its checksum, where its own header, which torch reads, says that it begins.

    Read, not mapped: a bad sector is then an OSError instead of a signal that ends the process.
    """
    size = os.fstat(fd).st_size
    if not 0 <= entry.header_offset <= size - _HEADER.size:
        return False
    header = os.pread(fd, _HEADER.size, entry.header_offset)
    signature, name_length, extra_length = _HEADER.unpack(header)
    position, crc = entry.header_offset + _HEADER.size + name_length + extra_length, 0
    end = position + entry.file_size
    if signature != b"PK\3\4" or end > size:
        return False
    while position < end:
        block = os.pread(fd, min(_BLOCK, end - position), position)
        if not block:  # truncated meanwhile
            return False
        crc, position = zlib.crc32(block, crc), position + len(block)
    return crc == entry.CRC
