"""Tar archives in WebDataset format: `KEY.jpg` next to `KEY.cls` or `KEY.json`."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path

from ..errors import SourceError
from .files import find_files
from .index import Record, build_index, names_of_labels
from .options import DEFAULTS, SourceOptions
from .source import Listing, Progress, Source, read_at
from .tar_headers import Member, TarHeaders
from .tree import IMAGE_EXTENSIONS

_LISTING_THREADS = 16
_MAX_LABEL_BYTES = 1 << 20


class TarSource(Source):
    """An uncompressed tar file, a folder of them, or a glob.

    As in WebDataset, consecutive members whose names agree up to the first dot of the file name form one sample: an
    image, and its class number as the text of a `.cls` file or as `"label"` in a `.json` file. Samples are ordered by
    the sorted tar files, then by their position in each file. Keys are `TAR/MEMBER`. Locators are `TAR:OFFSET`.
    """

    kind = "tar"
    applied_options = frozenset({"split"})

    def __init__(self, path: str, options: SourceOptions = DEFAULTS) -> None:
        super().__init__(path, options)
        self._folder = find_files(path, ".tar", options.split).folder

    def list_records(self, progress: Progress | None) -> Listing:
        """Read the headers and labels of every tar file in a thread pool."""
        files = find_files(self.path, ".tar", self.options.split)
        records: list[Record] = []
        with ThreadPoolExecutor(_LISTING_THREADS) as pool:
            for done, found in enumerate(pool.map(self._list_file, files.names), 1):
                records += found
                if progress is not None:
                    progress(done, len(files.names))
        if not records:
            raise SourceError(f"{self.path} contains no images: expected members such as 000017.jpg and 000017.cls")
        index = build_index(records)
        return Listing(index, names_of_labels(index), files.skipped)

    def read_bytes(self, record: Record) -> bytes:
        """Read one member with a single system call."""
        name, _, offset = record.locator.rpartition(":")
        return read_at(f"{self._folder}/{name}", int(offset), record.num_bytes)

    def _list_file(self, name: str) -> list[Record]:
        path = f"{self._folder}/{name}"
        try:
            with Path(path).open("rb", buffering=0) as file:
                headers = TarHeaders(path, file)
                return list(_records(name, path, headers))
        except OSError as error:
            raise SourceError(f"{path} cannot be read: {error.strerror}") from None


def _records(name: str, path: str, headers: TarHeaders) -> Iterator[Record]:
    """Yield a record for each image and the label next to it."""
    for _, members in groupby(headers.members(), key=lambda member: _split(member.name)[0]):
        parts = {_split(member.name)[1]: member for member in members}
        images = [member for extension, member in parts.items() if f".{extension}" in IMAGE_EXTENSIONS]
        if len(images) > 1:
            raise SourceError(f"{path} has several images in one sample, {_names(images)}: expected one")
        if images:
            label = _label(path, images[0], parts, headers)
            yield Record(f"{name}/{images[0].name}", label, images[0].size, f"{name}:{images[0].offset}")
        elif "cls" in parts:
            raise SourceError(
                f"{parts['cls'].name} in {path} has no image next to it: expected {', '.join(IMAGE_EXTENSIONS)}"
            )


def _split(member: str) -> tuple[str, str]:
    """Split the name of a member at the first dot after its folders, as WebDataset does."""
    folder, slash, file = member.rpartition("/")
    stem, _, extension = file.partition(".")
    return folder + slash + stem, extension.lower()


def _label(path: str, image: Member, parts: dict[str, Member], headers: TarHeaders) -> int:
    """Return the class number of a sample."""
    if "cls" in parts:
        content = _text(path, parts["cls"], headers)
        if content.strip().isdigit():
            return int(content)
        raise SourceError(f"{parts['cls'].name} in {path} contains {content[:40]!r}: expected a class number")
    if "json" in parts:
        content = _text(path, parts["json"], headers)
        try:
            value = json.loads(content)["label"]
        except (ValueError, KeyError, TypeError):
            value = None
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        raise SourceError(
            f'{parts["json"].name} in {path} contains {content[:40]!r}: expected a class number as "label"'
        )
    raise SourceError(
        f"{image.name} in {path} has no label: expected a .cls or .json file of the same name next to it; unpack "
        "archives of class folders first"
    )


def _text(path: str, member: Member, headers: TarHeaders) -> str:
    if member.size > _MAX_LABEL_BYTES:
        raise SourceError(f"{member.name} in {path} has {member.size:,} bytes: too large for a label")
    return headers.read(member.offset, member.size).decode("utf-8", "replace")


def _names(members: list[Member]) -> str:
    return " and ".join(member.name for member in members)
