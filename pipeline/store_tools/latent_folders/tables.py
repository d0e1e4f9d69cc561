"""Hugging Face datasets with latents in a column: folders that `save_to_disk` wrote, or parquet files."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ....errors import SourceError, first_line
from ....sources.saved_dataset import find_saved_files, is_saved_dataset
from ....stores.layout import FLIPPED
from .folder import Arrays, FolderOptions, LatentFolder, checked, require_grid

_LIST_KINDS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)


class TableFolder(LatentFolder):
    """Rows of tables in the order of the files: a column of nested lists, or of bytes with a stated shape and dtype."""

    layout: ClassVar[str] = "Hugging Face datasets"

    def __init__(self, folder: Path, options: FolderOptions) -> None:
        self._saved = is_saved_dataset(str(folder))
        if self._saved:
            self._files = [folder / name for name in find_saved_files(str(folder), None).names]
        else:
            self._files = sorted(folder.rglob("*.parquet"), key=lambda path: str(path.relative_to(folder)))
        self._options = options
        self._columns = _columns(self._schema(), options, folder)
        self.array = "moments" if options.moments else "latents"
        self.has_flips = options.flipped_key is not None
        self._ends = list(accumulate(map(self._num_rows, self._files)))
        self._last: tuple[Path, Any] | None = None  # the table that was read last
        first = self._rows(self._columns[0], range(1))
        self.shape, self.dtype = first.shape[1:], first.dtype.name
        require_grid(self.shape, self.dtype, f"{self._files[0]}: {self._columns[0]}")
        labels = [self._table(path)[options.label_key].to_numpy(zero_copy_only=False) for path in self._files]
        self.labels = np.concatenate(labels).astype(np.int64)
        if any(each.dtype.kind not in "iu" for each in labels):
            raise SourceError(f"{folder}: {options.label_key}: expected an integer in every row")
        self.keys = [f"{number:08d}" for number in range(len(self.labels))]
        self.statistics = next(iter(sorted(folder.glob("*latents-stats.pt"))), None)

    def _schema(self) -> pa.Schema:
        return self._table(self._files[0]).schema if self._saved else pq.read_schema(self._files[0])

    def _num_rows(self, path: Path) -> int:
        return len(self._table(path)) if self._saved else int(pq.read_metadata(path).num_rows)

    def _table(self, path: Path) -> Any:
        try:
            if self._saved:
                return pa.ipc.open_stream(pa.memory_map(str(path))).read_all()
            return pq.read_table(path, columns=[*self._columns, self._options.label_key], memory_map=True)
        except (OSError, pa.ArrowInvalid) as error:
            raise SourceError(f"{path} cannot be read ({first_line(error)}): copy it again") from error

    def _rows(self, column: str, rows: range) -> npt.NDArray[Any]:
        first, last = (bisect_right(self._ends, row) for row in (rows.start, rows.stop - 1))
        blocks = []
        for number in range(first, last + 1):
            path, begin = self._files[number], self._ends[number - 1] if number else 0
            if self._last is None or self._last[0] != path:
                self._last = path, self._table(path)
            part = slice(max(0, rows.start - begin), min(self._ends[number], rows.stop) - begin)
            values = self._last[1][column].slice(part.start, part.stop - part.start)
            blocks.append(_to_numpy(values, self._options, f"{path}: {column}"))
        return np.concatenate(blocks)

    def read(self, rows: range) -> Arrays:
        """Read the tables that hold some images."""
        names = [self.array, self.array + FLIPPED]
        return {
            name: checked(self._rows(column, rows), self.shape, self.dtype, column)
            for name, column in zip(names, self._columns, strict=False)
        }


def _columns(schema: pa.Schema, options: FolderOptions, folder: Path) -> list[str]:
    for flag, name in (("--latents-key", options.latents_key), ("--label-key", options.label_key)):
        if name is None:
            raise SourceError(f"{folder} has the columns {', '.join(schema.names)}: pass {flag}")
    wanted = [options.latents_key, options.flipped_key, options.label_key]
    missing = [name for name in wanted if name is not None and name not in schema.names]
    if missing:
        raise SourceError(f"{folder} has no column {missing[0]}: expected one of {', '.join(schema.names)}")
    return [name for name in wanted[:2] if name is not None]


def _to_numpy(column: Any, options: FolderOptions, where: str) -> npt.NDArray[Any]:
    """Return a column of nested lists, or of bytes, as an array `[B, C, h, w]`."""
    values = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(values, pa.ChunkedArray):  # of one chunk
        values = values.chunk(0)
    if values.null_count:
        raise SourceError(f"{where}: {values.null_count} rows are empty")
    if pa.types.is_binary(values.type) or pa.types.is_large_binary(values.type):
        return _from_bytes(values, options, where)
    sizes = [len(values)]
    while isinstance(values, pa.ExtensionArray):
        values = values.storage
    while (
        pa.types.is_list(values.type) or pa.types.is_large_list(values.type) or pa.types.is_fixed_size_list(values.type)
    ):
        lengths = pc.list_value_length(values).unique()
        if len(lengths) != 1:
            raise SourceError(f"{where}: rows have different sizes")
        sizes.append(lengths[0].as_py())
        values = values.flatten()
    array: npt.NDArray[Any] = values.to_numpy(zero_copy_only=False)
    if array.dtype.kind != "f" or len(array) != int(np.prod(sizes)):
        raise SourceError(f"{where}: expected nested lists of numbers of equal sizes, found {column.type}")
    return array.reshape(sizes).astype(np.float32 if array.dtype == np.float64 else array.dtype, copy=False)


def _from_bytes(values: Any, options: FolderOptions, where: str) -> npt.NDArray[Any]:
    if options.shape is None or options.dtype is None:
        raise SourceError(
            f"{where} holds bytes: pass --latents-shape and --latents-dtype, such as 32,16,16 and float16"
        )
    expected = int(np.prod(options.shape)) * np.dtype(options.dtype).itemsize
    rows = [value.as_buffer() for value in values]
    wrong = next((number for number, row in enumerate(rows) if row.size != expected), None)
    if wrong is not None:
        raise SourceError(
            f"{where}: row {wrong} holds {rows[wrong].size} bytes, expected {expected} of {options.dtype} "
            f"{list(options.shape)}"
        )
    return np.stack([np.frombuffer(row, options.dtype).reshape(options.shape) for row in rows])
