"""Read one committed shard back against its checksums.

Every byte is read once. A sample's checksum is compared with the group's `crc32c` array, which names the wrong
sample; the file's checksum, compared with the commit record, follows from those of its samples by arithmetic.
"""

from __future__ import annotations

import errno
import functools
import operator
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ..errors import StoreError
from .checksum import crc32c, crc32c_bytes, crc32c_rows
from .layout import CRC32C, shard_file, shard_range
from .manifest import Commit, read_commit
from .reader import ArrayLayout
from .store import Group, Store
from .writer import shard_index

READ_BYTES = 1 << 21  # a read is still in the processor's cache when its checksum is taken

# what parsing damaged metadata can raise
DAMAGE = (StoreError, OSError, ValueError, LookupError, TypeError, AttributeError)

FileRecord = dict[str, int]  # "bytes" and "crc32c" of a file, in a commit record
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One thing that is wrong, as narrowly as it is known."""

    what: str
    group: str | None = None  # None: files of the store itself
    shard: int | None = None  # None: metadata, which encoding again does not mend
    array: str | None = None
    sample: int | None = None
    key: str | None = None

    def __str__(self) -> str:
        places = [
            self.group,
            None if self.shard is None else f"shard {self.shard}",
            self.array,
            None if self.sample is None else f"sample {self.sample}",
            None if self.key is None else f"({self.key})",
        ]
        return f"{' '.join(place for place in places if place)}: {self.what}"


class ShardVerifier:
    """One committed shard of one group, to be read back."""

    def __init__(self, store: Store, group: Group, shard: int, keys: pa.ChunkedArray | None) -> None:
        self.store, self.group, self.shard, self.keys = store, group, shard, keys
        self.samples = shard_range(shard, store.manifest.num_samples, store.manifest.shard_size)
        self.layouts = {name: reader.layout for name, reader in group.shard_indexes.items()}
        self.paths = {name: f"{name}/{shard_file(layout.spec, shard)}" for name, layout in self.layouts.items()}
        self.checksums_path = f"{CRC32C}/c/{shard}/0"
        self.checksums_bytes = 4 * store.manifest.shard_size * len(self.layouts)
        self.num_bytes = self.checksums_bytes + sum(map(self._file_bytes, self.layouts.values()))
        self.problems: list[Problem] = []

    def verify(self) -> list[Problem]:
        """Read everything; what is wrong."""
        commit = self._read_commit()
        if commit is not None:
            checksums = self._read(CRC32C, self.checksums_path, commit, self._row_checksums)
            for column, (name, path) in enumerate(self.paths.items()):
                expected = None if checksums is None else checksums[:, column]
                self._read(name, path, commit, functools.partial(self._verify_file, name, expected))
        return self.problems

    def _add(self, what: str, array: str | None = None, sample: int | None = None) -> None:
        key = None if sample is None or self.keys is None else self.keys[sample].as_py()
        self.problems.append(
            Problem(group=self.group.path, shard=self.shard, array=array, sample=sample, key=key, what=what)
        )

    def _file_bytes(self, layout: ArrayLayout) -> int:
        return len(self.samples) * layout.spec.sample_bytes + 16 * layout.shard_size + 4

    def _read_commit(self) -> Commit | None:
        """The commit record, when it can be believed."""
        try:
            commit = read_commit(self.store.path, self.group.path, self.shard)
            if commit is None:
                raise StoreError("it is gone")
            for what, found, expected in (
                ("group", commit.group, self.group.path),
                ("shard", commit.shard, self.shard),
                ("num_samples", commit.num_samples, len(self.samples)),
                ("source_crc32c", len(commit.source_checksums), len(self.samples)),
                ("files", sorted(commit.files), sorted([*self.paths.values(), self.checksums_path])),
                ("bytes of the checksums", commit.files[self.checksums_path]["bytes"], self.checksums_bytes),
            ):
                if found != expected:
                    raise StoreError(f"{what} is {found!r}, expected {expected!r}")
            if any(not isinstance(file[what], int) for file in commit.files.values() for what in ("bytes", "crc32c")):
                raise StoreError(f"files is {commit.files!r}")
            if any(entry.index not in self.samples for entry in commit.quarantined):
                raise StoreError("it quarantines a sample of another shard")
        except DAMAGE as error:
            self._add(f"the commit record is damaged: {error}")
            return None
        return commit

    def _read(self, array: str, path: str, commit: Commit, read: Callable[[int, FileRecord], Result]) -> Result | None:
        """What `read` makes of the file's descriptor and record; None if it is absent, unreadable, of another size."""
        recorded = commit.files[path]
        try:
            fd = os.open(self.store.path / self.group.path / path, os.O_RDONLY)
            try:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
                found = os.fstat(fd).st_size
                if found == recorded["bytes"]:
                    return read(fd, recorded)
                self._add(f"the file has {found:,} bytes, its commit record says {recorded['bytes']:,}", array)
            finally:
                os.close(fd)
        except FileNotFoundError:
            self._add("the file is missing", array)
        except OSError as error:
            self._add(f"the file cannot be read ({error.strerror})", array)
        return None

    def _row_checksums(self, fd: int, recorded: FileRecord) -> npt.NDArray[np.uint32] | None:
        """Checksums of the samples `[n, arrays]`, when they are as they were written."""
        data = os.pread(fd, recorded["bytes"], 0)
        if crc32c_bytes(data) != recorded["crc32c"]:
            self._add("the checksums of the samples are damaged", CRC32C)
            return None
        rows: npt.NDArray[np.uint32] = np.frombuffer(data, dtype="<u4").reshape(-1, len(self.layouts))
        return rows[: len(self.samples)]

    def _verify_file(self, name: str, expected: npt.NDArray[np.uint32] | None, fd: int, recorded: FileRecord) -> None:
        """Compare one array's file with its record and, when they are known, with its samples' checksums."""
        layout, row_bytes = self.layouts[name], self.layouts[name].spec.sample_bytes
        if recorded["bytes"] != self._file_bytes(layout):
            self._explain_size(fd, layout, recorded)
            return
        data_bytes = len(self.samples) * row_bytes
        step = row_bytes * max(1, READ_BYTES // row_bytes)
        blocks = _blocks(fd, 0, data_bytes, step)
        rows = np.concatenate([crc32c_rows(block.reshape(-1, row_bytes)) for block in blocks])
        wrong = [] if expected is None else np.flatnonzero(rows != expected).tolist()
        for place in wrong:
            self._add("the bytes differ from their checksum", name, self.samples[place])
        index = next(_blocks(fd, data_bytes, recorded["bytes"], recorded["bytes"]))
        if index.tobytes() != shard_index(len(rows), row_bytes, layout.shard_size):
            self._add("the index at the end of the file is damaged", name)
        elif not wrong and crc32c(index, _join(rows, row_bytes)) != recorded["crc32c"]:
            self._add("the file differs from its checksum in the commit record", name)

    def _explain_size(self, fd: int, layout: ArrayLayout, recorded: FileRecord) -> None:
        """The file has the size on record, which is not what zarr.json implies: say which of the two is damaged."""
        blocks = _blocks(fd, 0, recorded["bytes"], READ_BYTES)
        if functools.reduce(lambda start, block: crc32c(block, start), blocks, 0) != recorded["crc32c"]:
            self._add(f"has {recorded['bytes']:,} bytes, expected {self._file_bytes(layout):,}", layout.spec.name)
            return
        what = f"zarr.json says samples of {layout.spec.sample_shape} {layout.spec.dtype}, the files hold others"
        self.problems.append(Problem(group=self.group.path, array=layout.spec.name, what=what))


def _blocks(fd: int, start: int, stop: int, step: int) -> Iterator[npt.NDArray[np.uint8]]:
    """Bytes `start` to `stop` of a file, `step` at a time, in a buffer that is used again."""
    buffer = np.empty(min(step, stop - start), dtype=np.uint8)
    for offset in range(start, stop, step):
        block = buffer[: stop - offset]
        got = 0
        while got < len(block):
            more = os.preadv(fd, [block[got:].data], offset + got)
            if more == 0:
                raise OSError(errno.EIO, "it became shorter while it was read")
            got += more
        yield block


def _join(rows: npt.NDArray[np.uint32], row_bytes: int) -> int:
    """The checksum of all rows one behind the other, out of the checksum of each.

    crc(A B) = crc(B) xor L(crc(A)), where L, the passing of len(B) bytes, is linear over bits.
    """
    first, second, third, fourth = _passing(row_bytes)
    joined = 0
    for row in rows.tolist():
        joined = (
            row ^ first[joined & 255] ^ second[joined >> 8 & 255] ^ third[joined >> 16 & 255] ^ fourth[joined >> 24]
        )
    return joined


@functools.cache
def _passing(num_bytes: int) -> list[list[int]]:
    """L as a table for each of a checksum's four bytes, lowest first."""
    zeros = np.zeros(num_bytes, dtype=np.uint8)
    constant = crc32c(zeros)
    columns = [crc32c(zeros, 1 << bit) ^ constant for bit in range(32)]
    return [
        [
            functools.reduce(operator.xor, (columns[8 * byte + bit] for bit in range(8) if value >> bit & 1), 0)
            for value in range(256)
        ]
        for byte in range(4)
    ]
