"""Parquet files with a column of images and a column of labels, as in Hugging Face's image datasets."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import SourceError, first_line
from .block_cache import Block
from .columns import choose_columns
from .files import Files, find_files
from .table_source import Rows, TableSource

MAX_ROW_GROUP_BYTES = 1 << 29
"""Bytes of the images of a row group, which is held in memory as a whole, and of the labels and paths of a file."""

MAX_ROWS = 10_000_000
"""Rows of a file: a few bytes can state billions."""

_LABELS_AT_A_TIME = 16  # rows: more would hardly be faster


class ParquetSource(TableSource):
    """A parquet file, a folder of them, or a glob.

    Files are sorted, and rows are in the order of their file. A block is a row group. `num_bytes` is UNKNOWN_SIZE,
    since determining it would require reading every image.
    """

    kind = "parquet"

    def find_files(self) -> Files:
        """Find the parquet files of the split."""
        return find_files(self.path, ".parquet", self.options.split)

    def read_rows(self, name: str) -> Rows:
        """Read the columns of labels and paths."""
        path = f"{self._folder}/{name}"
        with self._open(name) as file:
            columns = choose_columns(path, file.schema_arrow, self.options)
            lengths = _row_group_lengths(path, file.metadata, columns.image_bytes)
            wanted = [columns.label] if columns.label is not None else []
            if columns.has_path:
                wanted.append(f"{columns.image}.path")
            table = self._read_small(name, file, range(len(lengths)), wanted, _LABELS_AT_A_TIME)
            without_bytes = _count_nulls(file.metadata, columns.image_bytes)
        labels, paths = columns.labels_of(table), columns.paths_of(table)
        return Rows(name, columns, labels, paths, list(enumerate(lengths)), None, without_bytes)

    def read_block(self, block: Block) -> Any:
        """Read the images of a row group."""
        name, number = block
        with self._open(name) as file:
            columns = choose_columns(f"{self._folder}/{name}", file.schema_arrow, self.options)
            table = self._read_small(name, file, [number], [columns.image_bytes], rows=1)
        return columns.bytes_of(table)

    def _read_small(self, name: str, file: pq.ParquetFile, groups: Sequence[int], columns: list[str], rows: int) -> Any:
        """Read columns of row groups, a few rows at a time: a file may state a wrong size, or repeat one large value.

        Raises:
            SourceError: the columns are damaged, or need more than `MAX_ROW_GROUP_BYTES`.
        """
        path, batches, size = f"{self._folder}/{name}", [], 0
        try:
            for batch in file.iter_batches(rows, row_groups=groups, columns=columns, use_threads=False):
                batches.append(batch)
                size += batch.nbytes
                if size > MAX_ROW_GROUP_BYTES:
                    raise SourceError(
                        f"{path} needs more than {MAX_ROW_GROUP_BYTES >> 20} MiB to read {' and '.join(columns)}: it "
                        "states another size, so it is damaged or a decompression bomb"
                    )
            table = pa.Table.from_batches(batches) if batches else file.schema_arrow.empty_table()
            table.validate(full=True)  # text has to be UTF-8
            return table
        except (OSError, IndexError, pa.ArrowException) as error:
            raise SourceError(f"{path} is damaged or has changed ({first_line(error)}): download it again") from None

    def _open(self, name: str) -> pq.ParquetFile:
        path = f"{self._folder}/{name}"
        try:
            return pq.ParquetFile(path)
        except (OSError, pa.ArrowException) as error:
            raise SourceError(f"{path} is not a readable parquet file ({first_line(error)})") from None


def _chunks(metadata: Any, column: str) -> list[Any]:
    """Return the metadata of a column in each row group."""
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    chunks = (group.column(number) for group in groups for number in range(group.num_columns))
    return [chunk for chunk in chunks if chunk.path_in_schema == column]


def _row_group_lengths(path: str, metadata: Any, column: str) -> list[int]:
    """Return the number of rows of each row group.

    Raises:
        SourceError: a row group is too large to hold in memory, or there are too many rows.
    """
    largest = max((chunk.total_uncompressed_size for chunk in _chunks(metadata, column)), default=0)
    if largest > MAX_ROW_GROUP_BYTES:
        raise SourceError(
            f"{path} has a row group of {largest >> 20:,} MiB of images: expected at most "
            f"{MAX_ROW_GROUP_BYTES >> 20} MiB; rewrite the file, for example with row_group_size=1000"
        )
    if metadata.num_rows > MAX_ROWS:
        raise SourceError(f"{path} states {metadata.num_rows:,} rows: expected at most {MAX_ROWS:,}; split the file")
    return [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]


def _count_nulls(metadata: Any, column: str) -> int:
    """Return the number of rows without a value, as far as the statistics of the file state it."""
    statistics = [chunk.statistics for chunk in _chunks(metadata, column)]
    return sum(part.null_count for part in statistics if part is not None and part.has_null_count)
