"""Parquet files as in Hugging Face's image datasets: a struct column `image` with the bytes, and an integer `label`."""

from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..errors import BadImageError, SourceError, first_line
from .files import check_one_split, folder_of, list_files
from .index import UNKNOWN_SIZE, Record, build_index, names_of_labels
from .options import DEFAULTS, SourceOptions
from .parquet_schema import image_columns, row_group_lengths
from .row_groups import RowGroup, RowGroupCache
from .source import Listing, Progress, Source

_LISTING_THREADS = 16
_CACHED_ROW_GROUPS = 4


class ParquetSource(Source):
    """A parquet file, a folder of them, or a glob.

    Files are sorted, and rows are in the order of their file. Class names come from Hugging Face's metadata, if any.
    Keys are `FILE/ROW` or `FILE/ROW/PATH`. Locators are `FILE:ROW GROUP:ROW IN THE GROUP`. `num_bytes` is
    UNKNOWN_SIZE, since determining it would require reading every image.

    Reading a row requires reading its row group. The last few row groups are cached, so read records in order.
    """

    kind = "parquet"

    def __init__(self, path: str, options: SourceOptions = DEFAULTS) -> None:
        super().__init__(path, options)
        list_files(path, ".parquet")
        self._folder = folder_of(path)
        self._row_groups = RowGroupCache(_CACHED_ROW_GROUPS)

    def list_records(self, progress: Progress | None) -> Listing:
        """Read the labels of every file in a thread pool."""
        files = list_files(self.path, ".parquet")
        check_one_split(self.path, files)
        records: list[Record] = []
        names: dict[tuple[str, ...] | None, str] = {}
        with ThreadPoolExecutor(_LISTING_THREADS) as pool:
            for done, (found, class_names) in enumerate(pool.map(self._list_file, files), 1):
                records += found
                names[class_names] = files[done - 1]
                if progress is not None:
                    progress(done, len(files))
        if len(names) > 1:
            raise SourceError(f"{' and '.join(list(names.values())[:2])} in {self._folder} have different class names")
        if not records:
            raise SourceError(f"{self.path} contains no rows")
        index = build_index(records)
        (class_names,) = names
        return Listing(index, class_names or names_of_labels(index))

    def read_bytes(self, record: Record) -> bytes:
        """Read one image. Caches the row group that contains it."""
        group, _, row = record.locator.rpartition(":")
        name, _, number = group.rpartition(":")
        images = self._row_groups.get((name, int(number)), self._read_row_group)
        if int(row) >= len(images):
            raise SourceError(
                f"{self._folder}/{name} has changed since it was listed: restore it, or create a new store"
            )
        data: bytes | None = images[int(row)].as_py()
        if data is None:
            raise BadImageError("its row holds no image bytes")
        return data

    def _open(self, name: str) -> pq.ParquetFile:
        path = f"{self._folder}/{name}"
        try:
            return pq.ParquetFile(path)
        except (OSError, pa.ArrowException) as error:
            raise SourceError(f"{path} is not a readable parquet file ({first_line(error)})") from None

    def _list_file(self, name: str) -> tuple[list[Record], tuple[str, ...] | None]:
        path = f"{self._folder}/{name}"
        with self._open(name) as file:
            columns = image_columns(path, file.schema_arrow)
            wanted = [columns.label, f"{columns.image}.path"] if columns.has_path else [columns.label]
            try:
                table = file.read(columns=wanted, use_threads=False)
            except (OSError, pa.ArrowException) as error:
                raise SourceError(f"{path} is damaged ({first_line(error)}): download it again") from None
            sizes = row_group_lengths(path, file.metadata, f"{columns.image}.bytes")
        labels = table[columns.label].to_pylist()
        if None in labels:
            raise SourceError(
                f"{path} has no label in row {labels.index(None):,}: expected a class number in every row"
            )
        paths = [""] * len(labels)
        if columns.has_path:
            paths = pc.fill_null(pc.struct_field(table[columns.image], "path"), "").to_pylist()
        locators = [f"{name}:{number}:{row}" for number, size in enumerate(sizes) for row in range(size)]
        keys = [f"{name}/{row}/{path}".removesuffix("/") for row, path in enumerate(paths)]
        found = zip(keys, labels, locators, strict=True)
        return [Record(key, label, UNKNOWN_SIZE, locator) for key, label, locator in found], columns.class_names

    def _read_row_group(self, row_group: RowGroup) -> pa.ChunkedArray:
        name, number = row_group
        with self._open(name) as file:
            columns = image_columns(f"{self._folder}/{name}", file.schema_arrow)
            try:
                table = file.read_row_group(number, columns=[f"{columns.image}.bytes"], use_threads=False)
            except (OSError, IndexError, pa.ArrowException) as error:
                raise SourceError(f"{self._folder}/{name} is damaged or has changed ({first_line(error)})") from None
        return pc.struct_field(table[columns.image], "bytes")
