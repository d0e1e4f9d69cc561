"""The base class of sources of images, for the built-in kinds and for plug-ins."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import pyarrow.compute as pc

from ..errors import BadImageError, SourceError
from .index import UNKNOWN_SIZE, Index, Record
from .options import OF_0_1_0, SourceOptions
from .skipped import RECORDED, Skipped, skipped_as_json

MAX_IMAGE_BYTES = 1 << 30
"""Size of the file of one image. The pixels of the largest image that is decoded need 537 MB without compression."""

Progress: TypeAlias = Callable[[int, int], None]
"""Called with (done, total) while a source is listed. The unit depends on the kind: class folders or files."""


@dataclass(frozen=True, slots=True)
class Listing:
    """The result of listing a source."""

    index: Index
    class_names: tuple[str, ...]  # name of label i
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()  # what the user should know about classes, or about images that are left out


class Source(ABC):
    """A source of images.

    Creating and pickling a source is fast: workers receive a copy and read records without listing the source.
    Subclasses implement `list_records` and `read_bytes`. Both must be thread-safe, and `list_records` must return the
    same order every time.

    Args:
        path: the location of the images.
        options: how to read it. Plug-ins need none: they decide themselves which files are images.
    """

    kind: str = "plug-in"
    applied_options: ClassVar[frozenset[str]] = frozenset()
    """Names of the options that the kind applies. All others are refused."""

    def __init__(self, path: str, options: SourceOptions = OF_0_1_0) -> None:
        options.require_only(self.kind, path, self.applied_options)
        self.path = path  # of the split, if splits are folders
        self._given_path = path
        self.options = options
        self._listing: Listing | None = None

    @abstractmethod
    def list_records(self, progress: Progress | None) -> Listing:
        """List all records of the source.

        Args:
            progress: called with the number of listed units and their total.

        Raises:
            SourceError: there are no usable images.
        """

    @abstractmethod
    def read_bytes(self, record: Record) -> bytes:
        """Read the encoded bytes of one image.

        Raises:
            SourceError: the source cannot be read.
            BadImageError: only this image is damaged.
        """

    def index(self, progress: Progress | None = None) -> Index:
        """Return the index of the source, with the columns of `SCHEMA`. The first call lists the source."""
        return self._listed(progress).index

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of label i. The first access lists the source."""
        return self._listed(None).class_names

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """Files that did not become samples. The first access lists the source."""
        return self._listed(None).skipped

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know about the listing. The first access lists the source."""
        return self._listed(None).notes

    def describe(self) -> dict[str, Any]:
        """Return the kind and path of this source, and its options if any: `open_recorded` opens it again."""
        options = self.options.as_json()
        return {"kind": self.kind, "path": self._given_path} | ({"options": options} if options else {})

    def provenance(self) -> dict[str, Any]:
        """Return what a store records about its source: `describe`, and the skipped files. Lists the source."""
        return self.describe() | {RECORDED: skipped_as_json(self.skipped)}

    def read(self, record: Record) -> bytes:
        """Read the encoded bytes of one image and check their size.

        Raises:
            SourceError: the source has changed since it was listed, or cannot be read.
            BadImageError: only this image is damaged, or it is larger than `MAX_IMAGE_BYTES` and was not read.
        """
        if record.num_bytes > MAX_IMAGE_BYTES:
            raise BadImageError(f"its file has {record.num_bytes:,} bytes: expected at most {MAX_IMAGE_BYTES:,}")
        data = self.read_bytes(record)
        if record.num_bytes not in (UNKNOWN_SIZE, len(data)):
            raise SourceError(
                f"{record.key} in {self.path} has {len(data):,} bytes and had {record.num_bytes:,} when it was "
                "listed: restore the source, or create a new store"
            )
        return data

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the source without its listing: workers receive the records to read."""
        return self.__dict__ | {"_listing": None}

    def _listed(self, progress: Progress | None) -> Listing:
        if self._listing is None:
            listing = self.list_records(progress)
            self._check(listing)
            self._listing = listing
        return self._listing

    def _check(self, listing: Listing) -> None:
        if listing.index.num_rows == 0:
            raise SourceError(f"{self.path} contains no images")
        largest = pc.max(listing.index["label"]).as_py()
        if largest >= len(listing.class_names):
            raise SourceError(
                f"{self.path}: expected class names for labels 0 to {largest}, found {len(listing.class_names)} names"
            )


def read_at(path: str, offset: int, size: int) -> bytes:
    """Read exactly `size` bytes of a file.

    Raises:
        SourceError: the file cannot be read or is too short.
    """
    try:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - Path takes as long as the read
            data = os.pread(file.fileno(), size, offset)
            while data and len(data) < size:  # one call reads at most 2 GiB
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
