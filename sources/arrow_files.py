"""Arrow files, and datasets that Hugging Face's `save_to_disk` wrote."""

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ..errors import SourceError
from .arrow_batches import iterate_batches, list_batches, read_batch
from .block_cache import Block
from .columns import choose_columns
from .files import Files, find_files
from .index import UNKNOWN_SIZE
from .saved_dataset import find_saved_files, is_saved_dataset
from .table_source import Rows, TableSource


class ArrowSource(TableSource):
    """An Arrow file, a folder of them, a glob, or a folder that `save_to_disk` wrote.

    Files are in the order of `state.json`, else sorted, and rows are in the order of their file. A block is a record
    batch, at its offset in the file.
    """

    kind = "arrow"

    def find_files(self) -> Files:
        """Find the Arrow files of the split."""
        if is_saved_dataset(self.path):
            return find_saved_files(self.path, self.options.split)
        return find_files(self.path, ".arrow", self.options.split)

    def read_rows(self, name: str) -> Rows:
        """Read the columns of labels and paths, and the sizes of images from their offsets."""
        path = f"{self._folder}/{name}"
        listed = list_batches(path)
        columns = choose_columns(path, listed.schema, self.options)
        wanted = [columns.image] if columns.label is None else [columns.image, columns.label]
        labels, paths, sizes, lengths, without_bytes = [], [], [], [], 0
        for batch in iterate_batches(path, wanted):
            images = columns.bytes_of(batch)
            labels.append(columns.labels_of(batch))
            paths.append(columns.paths_of(batch))
            sizes += pc.fill_null(pc.binary_length(images), UNKNOWN_SIZE).to_pylist()
            lengths.append(len(batch))
            without_bytes += images.null_count
        if len(lengths) != len(listed.offsets):
            raise SourceError(f"{path} changed while it was listed: wait until it is complete")
        blocks = list(zip(listed.offsets, lengths, strict=True))
        return Rows(name, columns, _joined(labels), _joined(paths), blocks, sizes, without_bytes)

    def read_block(self, block: Block) -> Any:
        """Map the images of a record batch into memory."""
        name, offset = block
        path = f"{self._folder}/{name}"
        schema, batch = read_batch(path, offset)
        return choose_columns(path, schema, self.options).bytes_of(batch)


def _joined(chunks: list[Any]) -> Any:
    """Return the values of all batches as one array; None if there are none."""
    return None if not chunks or chunks[0] is None else pa.chunked_array(chunks)
