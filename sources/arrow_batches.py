"""Record batches of Arrow IPC streams and files, read by their position.

A file in IPC *file* format is a stream between a magic number and a footer, so both formats are read in the same way.
The files are memory-mapped: of an image, only its own pages are read.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from ..errors import SourceError, first_line
from .arrow_messages import decompressed_bytes

MAX_COMPRESSED_BATCH = 1 << 29
"""Bytes of the buffers of a compressed record batch or dictionary, which are decompressed into memory as a whole."""

_FILE_MAGIC = b"ARROW1\0\0"


@dataclass(frozen=True, slots=True)
class Batches:
    """Where the record batches of a file are."""

    schema: pa.Schema
    offsets: tuple[int, ...]  # of the batches' messages, in bytes


def list_batches(path: str) -> Batches:
    """Find the record batches of a file. Reads only their metadata.

    Raises:
        SourceError: the file cannot be read, is damaged, or is not an Arrow file.
    """
    with _opened(path) as source:
        schema = _read_schema(source)
        offsets: list[int] = []
        while True:
            offset = source.tell()
            try:
                message = _read_message(source)
            except EOFError:
                if offset == source.size():  # its writer was killed between two batches
                    raise EOFError("it was not written to its end") from None
                return Batches(schema, tuple(offsets))
            if message.type == "record batch":
                offsets.append(offset)


def iterate_batches(path: str, names: list[str]) -> Iterator[pa.RecordBatch]:
    """Yield the record batches of a file in order, with some of their columns, after checking their offsets.

    Raises:
        SourceError: the file cannot be read.
    """
    with _opened(path) as source:
        schema = _read_schema(source)
        options = pa.ipc.IpcReadOptions(included_fields=[schema.get_field_index(name) for name in names])
        is_file = _start(source) > 0
        source.seek(0)
        for batch in _file_batches(source, options) if is_file else pa.ipc.open_stream(source, options=options):
            batch.validate(full=True)
            yield batch


def read_batch(path: str, offset: int) -> tuple[pa.Schema, pa.RecordBatch]:
    """Return the schema of a file and the record batch at an offset, without decoding dictionaries.

    Raises:
        SourceError: the file cannot be read, or has changed.
    """
    with _opened(path) as source:
        schema = _read_schema(source)
        source.seek(offset)
        batch = pa.ipc.read_record_batch(_read_message(source), pa.schema(map(_with_indices, schema)))
        batch.validate(full=True)
        return schema, batch


def _file_batches(source: Any, options: Any) -> Iterator[pa.RecordBatch]:
    file = pa.ipc.open_file(source, options=options)
    return (file.get_batch(number) for number in range(file.num_record_batches))


@contextmanager
def _opened(path: str) -> Iterator[Any]:
    """Map a file into memory, and name it in errors of Arrow."""
    try:
        with pa.memory_map(path) as source:
            yield source
    except (OSError, EOFError, ValueError, pa.ArrowException) as error:
        raise SourceError(
            f"{path} is not a readable Arrow file, is damaged, or has changed ({first_line(error)}): expected an Arrow "
            "IPC stream or file"
        ) from None


def _start(source: Any) -> int:
    source.seek(0)
    return len(_FILE_MAGIC) if source.read(len(_FILE_MAGIC)) == _FILE_MAGIC else 0


def _read_schema(source: Any) -> pa.Schema:
    """Read the schema, and leave the position behind it."""
    source.seek(_start(source))
    return pa.ipc.read_schema(pa.ipc.read_message(source))


def _read_message(source: Any) -> Any:
    """Read a message; ValueError if it is a bomb: a few kilobytes may state buffers of any size."""
    message = pa.ipc.read_message(source)
    size = decompressed_bytes(message)
    if size > MAX_COMPRESSED_BATCH:
        raise ValueError(
            f"a compressed {message.type} states {size:,} bytes, more than {MAX_COMPRESSED_BATCH:,}: write smaller "
            "batches"
        )
    return message


def _with_indices(field: pa.Field) -> pa.Field:
    """Replace dictionary types by their indices, at any depth: these are what a record batch contains."""
    kind = field.type
    if pa.types.is_dictionary(kind):
        return field.with_type(kind.index_type)
    if pa.types.is_struct(kind):
        return field.with_type(pa.struct([_with_indices(child) for child in kind]))
    if pa.types.is_list(kind):
        return field.with_type(pa.list_(_with_indices(kind.value_field)))
    return field
