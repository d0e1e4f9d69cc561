"""Sources whose images are the rows of tables: what parquet files and Arrow files share."""

import logging
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc

from ..errors import BadImageError, SourceError
from .block_cache import Block, BlockCache
from .columns import Columns
from .files import Files
from .index import UNKNOWN_SIZE, Record, build_index, names_of_labels
from .options import DEFAULTS, SourceOptions
from .source import Listing, Progress, Source
from .tree import FLAT_CLASS

logger = logging.getLogger(__name__)

_LISTING_THREADS = 16
_CACHED_BLOCKS = 4


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of one file, without the images."""

    name: str
    columns: Columns
    labels: Any  # array of class numbers or class names; None: all images are one class
    paths: Any  # array of file names, empty if unknown; None: all are unknown
    blocks: Sequence[tuple[int, int]]  # number or offset of each block, and its rows
    sizes: Sequence[int] | None  # of the encoded images; None: unknown
    without_bytes: int  # rows known to have no encoded image

    def __len__(self) -> int:
        return sum(rows for _, rows in self.blocks)

    def records(self, class_names: pa.Array | None) -> Iterator[Record]:
        """Yield a record per row. Labels that are text are replaced by their position in `class_names`."""
        if class_names is not None:
            labels = pc.index_in(self.labels, value_set=class_names).to_pylist()
        else:
            labels = [0] * len(self) if self.labels is None else self.labels.to_pylist()
        paths = [""] * len(self) if self.paths is None else self.paths.to_pylist()
        locators = [f"{self.name}:{block}:{row}" for block, rows in self.blocks for row in range(rows)]
        keys = [f"{self.name}/{row}/{path}".removesuffix("/") for row, path in enumerate(paths)]
        sizes = self.sizes or [UNKNOWN_SIZE] * len(self)
        return (Record(*fields) for fields in zip(keys, labels, sizes, locators, strict=True))


class TableSource(Source):
    """A source whose images are the rows of tables.

    Keys are `FILE/ROW` or `FILE/ROW/PATH`. Locators are `FILE:BLOCK:ROW IN THE BLOCK`. Reading a row requires reading
    its block. The last few blocks are cached, so read records in order.
    """

    applied_options = frozenset({"split", "image_column", "label_column", "unlabeled"})
    suffix: ClassVar[str]

    def __init__(self, path: str, options: SourceOptions = DEFAULTS) -> None:
        super().__init__(path, options)
        self._folder = self.find_files().folder
        self._blocks = BlockCache(_CACHED_BLOCKS)

    @abstractmethod
    def find_files(self) -> Files:
        """Find the files to read."""

    @abstractmethod
    def read_rows(self, name: str) -> Rows:
        """Read the labels of a file."""

    @abstractmethod
    def read_block(self, block: Block) -> Any:
        """Return the encoded images of a block, as an Arrow array."""

    def list_records(self, progress: Progress | None) -> Listing:
        """Read the labels of every file in a thread pool."""
        files = self.find_files()
        found: list[Rows] = []
        with ThreadPoolExecutor(_LISTING_THREADS) as pool:
            for rows in pool.map(self.read_rows, files.names):
                found.append(rows)
                if progress is not None:
                    progress(len(found), len(files.names))
        columns = self._common_columns(found)
        self._check_rows(found)
        logger.info("%s: images from column %s, %s", self.path, columns.image, _describe_labels(columns))
        names = self._text_classes(found) if columns.is_text else None
        index = build_index(record for rows in found for record in rows.records(names))
        if columns.label is None:
            return Listing(index, (FLAT_CLASS,), files.skipped)
        class_names = tuple(names.to_pylist()) if names is not None else columns.class_names
        return Listing(index, class_names or names_of_labels(index), files.skipped)

    def read_bytes(self, record: Record) -> bytes:
        """Read one image. Caches the block that contains it."""
        place, _, row = record.locator.rpartition(":")
        name, _, number = place.rpartition(":")
        images = self._blocks.get((name, int(number)), self.read_block)
        if int(row) >= len(images):
            raise self.changed(name)
        data: bytes | None = images[int(row)].as_py()
        if data is None:
            path = record.key.removeprefix(f"{name}/").partition("/")[2]
            raise BadImageError(f"its row holds no image bytes{f', only the path {path}' if path else ''}")
        return data

    def changed(self, name: str) -> SourceError:
        """Return the error for a file that is not the one that was listed."""
        return SourceError(f"{self._folder}/{name} has changed since it was listed: restore it, or create a new store")

    def _common_columns(self, found: Sequence[Rows]) -> Columns:
        first = found[0]
        for rows in found[1:]:
            pair = f"{first.name} and {rows.name} in {self._folder}"
            ours, theirs = first.columns, rows.columns
            if ours.class_names != theirs.class_names:
                raise SourceError(f"{pair} have different class names: pass one of them")
            if (ours.image, ours.label, ours.is_text) != (theirs.image, theirs.label, theirs.is_text):
                raise SourceError(
                    f"{pair} have different columns ({ours.image}, {ours.label} and {theirs.image}, {theirs.label}): "
                    "choose the same with --image-column and --label-column"
                )
        return first.columns

    def _check_rows(self, found: Sequence[Rows]) -> None:
        total = sum(map(len, found))
        if not total:
            raise SourceError(f"{self.path} contains no rows")
        if total == sum(rows.without_bytes for rows in found):
            paths = next(rows.paths for rows in found if len(rows))
            instead = f", only paths such as {paths[0]}" if paths is not None and paths[0].as_py() else ""
            raise SourceError(
                f"{self.path} holds no image bytes{instead}: write it again with embedded images, as push_to_hub and "
                "save_to_disk of Hugging Face's datasets do, or pass the folder of the image files"
            )
        for rows in found:
            if rows.labels is not None and rows.labels.null_count:
                row = pc.index(pc.is_null(rows.labels), True).as_py()
                raise SourceError(
                    f"{self._folder}/{rows.name} has no label in row {row:,}: expected one in every row; make all "
                    "images one class with --unlabeled"
                )

    def _text_classes(self, found: Sequence[Rows]) -> pa.Array:
        """Return the distinct text labels of all files, in the order of class folders."""
        distinct: set[str] = set()
        for rows in found:
            distinct.update(rows.labels.unique().to_pylist())
        names = sorted(distinct)
        if all(map(str.isdecimal, names)) and names != sorted(names, key=int):
            logger.warning(
                "%s: the labels are numbers as text, and classes are sorted as text (%s, ...): store integers to use "
                "the numbers as labels",
                self.path,
                ", ".join(names[:4]),
            )
        return pa.array(names)


def _describe_labels(columns: Columns) -> str:
    return f"labels from column {columns.label}" if columns.label is not None else "labels ignored"
