"""What every source of images is: the base class of the built-in kinds and of plug-ins."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import pyarrow.compute as pc

from ..errors import SourceError
from .index import UNKNOWN_SIZE, Index, Record

Progress: TypeAlias = Callable[[int, int], None]
"""Called with (done, total) while a source is listed; the unit is the kind's: folders, files or bytes."""


@dataclass(frozen=True, slots=True)
class Listing:
    """What listing a source finds."""

    index: Index
    class_names: tuple[str, ...]  # name of label i


class Source(ABC):
    """Where images come from.

    Cheap to make and to pickle: a worker gets a copy and reads record i without listing anything. A kind
    implements `list_records` and `read_bytes`; both must be safe to call from many threads, and `list_records` must
    give the same order every time.
    """

    kind: str = "plug-in"

    def __init__(self, path: str) -> None:
        self.path = path
        self._listing: Listing | None = None

    @abstractmethod
    def list_records(self, progress: Progress | None) -> Listing:
        """List the whole source. Raises SourceError where nothing usable is found."""

    @abstractmethod
    def read_bytes(self, record: Record) -> bytes:
        """Read one encoded image. Raises SourceError, or BadImageError where this image alone is damaged."""

    def index(self, progress: Progress | None = None) -> Index:
        """List the source, once; see `index.SCHEMA` for the columns."""
        return self._listed(progress).index

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of label i; lists the source if that has not happened yet."""
        return self._listed(None).class_names

    def describe(self) -> dict[str, str]:
        """Give the kind and path that open this source again."""
        return {"kind": self.kind, "path": self.path}

    def read(self, record: Record) -> bytes:
        """Read one encoded image.

        Raises SourceError where the source is not what it was when it was listed, and BadImageError where this
        image's bytes alone are damaged.
        """
        data = self.read_bytes(record)
        if record.num_bytes not in (UNKNOWN_SIZE, len(data)):
            raise SourceError(
                f"{record.key} in {self.path} has {len(data):,} bytes and had {record.num_bytes:,} when it was "
                "listed: the source has changed, start from it anew"
            )
        return data

    def __getstate__(self) -> dict[str, Any]:
        """Leave the listing behind: workers are told their records."""
        return self.__dict__ | {"_listing": None}

    def _listed(self, progress: Progress | None) -> Listing:
        if self._listing is None:
            listing = self.list_records(progress)
            self._check(listing)
            self._listing = listing
        return self._listing

    def _check(self, listing: Listing) -> None:
        if listing.index.num_rows == 0:
            raise SourceError(f"{self.path} holds no images")
        largest = pc.max(listing.index["label"]).as_py()
        if largest >= len(listing.class_names):
            raise SourceError(
                f"{self.path} has the label {largest} but names {len(listing.class_names)} classes: expected a "
                "name for every label"
            )


def read_at(path: str, offset: int, size: int) -> bytes:
    """Read exactly `size` bytes of a file. Raises SourceError where it cannot be read or is shorter."""
    try:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - Path costs as much as the read
            data = os.pread(file.fileno(), size, offset)
            while data and len(data) < size:  # one call reads 2 GiB at most
                more = os.pread(file.fileno(), size - len(data), offset + len(data))
                if not more:
                    break
                data += more
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}") from None
    if len(data) < size:
        raise SourceError(
            f"{path} ends {size - len(data):,} bytes early: it was truncated or replaced after it was listed"
        )
    return data
