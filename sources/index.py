"""The index: every record of a source, in an order that is always the same."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from ..errors import SourceError

Index: TypeAlias = pa.Table
"""Columns of SCHEMA; row i is record i."""

SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("label", pa.int32(), nullable=False),
        pa.field("num_bytes", pa.int64(), nullable=False),
        pa.field("where", pa.string(), nullable=False),  # Record.locator
    ]
)

UNKNOWN_SIZE = -1
"""`num_bytes` where a source can't tell without reading the image itself (parquet)."""

MAX_CLASSES = 1_000_000
"""A larger label is no class number but something else, such as a date."""

_ROWS_AT_ONCE = 65_536


@dataclass(frozen=True, slots=True)
class Record:
    """One image of a source: enough for any worker to read its bytes without listing the source again."""

    key: str  # its name inside the source, unique there
    label: int
    num_bytes: int  # of the encoded image; UNKNOWN_SIZE where the source can't tell
    locator: str = ""  # how the source finds the bytes; only the source reads it


def build_index(records: Iterable[Record]) -> Index:
    """Put records into a table, in the order given.

    Raises SourceError for a key that occurs twice or isn't valid UTF-8, and for a label outside 0 to MAX_CLASSES.
    """
    waiting = iter(records)
    batches = []
    while rows := list(islice(waiting, _ROWS_AT_ONCE)):  # a million records as Python objects would fill a gigabyte
        _check_labels(rows)
        columns = [
            _strings([row.key for row in rows]),
            pa.array([row.label for row in rows], pa.int32()),
            pa.array([row.num_bytes for row in rows], pa.int64()),
            _strings([row.locator for row in rows]),
        ]
        batches.append(pa.record_batch(columns, schema=SCHEMA))
    index = pa.Table.from_batches(batches, SCHEMA)
    _check_keys(index["key"])
    return index


def records_of(index: Index) -> Iterator[Record]:
    """Go through an index, or any table with its columns, as records."""
    for batch in index.select(SCHEMA.names).to_batches(max_chunksize=_ROWS_AT_ONCE):
        for key, label, num_bytes, locator in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            yield Record(key, label, num_bytes, locator)


def index_digest(index: Index) -> str:
    """Sha256, in hex, of what a source holds: keys, labels and sizes in order, not where they lie.

    Hashed are the UTF-8 lines `LABEL SIZE LENGTH KEY` and a newline, LENGTH being the key's in characters. A
    source that was moved or repacked at other offsets keeps its digest.
    """
    digest = hashlib.sha256()
    for batch in index.select(["label", "num_bytes", "key"]).to_batches(max_chunksize=_ROWS_AT_ONCE):
        rows = zip(*(column.to_pylist() for column in batch.columns), strict=True)
        lines = [f"{label} {num_bytes} {len(key)} {key}\n" for label, num_bytes, key in rows]
        digest.update("".join(lines).encode())
    return digest.hexdigest()


def names_of_labels(index: Index) -> tuple[str, ...]:
    """Class names for a source that only has numbers: "0", "1", ... up to the largest label."""
    return tuple(str(label) for label in range(pc.max(index["label"]).as_py() + 1))


def _strings(values: list[str]) -> Any:
    try:
        return pa.array(values, pa.string())
    except UnicodeEncodeError:
        bad = next(value for value in values if not _is_utf8(value))
        raise SourceError(f"the name {bad!r} is not valid UTF-8: rename it") from None


def _is_utf8(value: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in value)


def _check_labels(rows: list[Record]) -> None:
    bad = next((row for row in rows if not 0 <= row.label < MAX_CLASSES), None)
    if bad is not None:
        raise SourceError(
            f"{bad.key} has label {bad.label}: expected 0 to {MAX_CLASSES - 1:,} (a split without labels, such as "
            "ImageNet's test, cannot be used)"
        )


def _check_keys(keys: Any) -> None:
    counts = pc.value_counts(keys).flatten()
    twice = counts[0].filter(pc.greater(counts[1], 1))
    if len(twice):
        raise SourceError(f"{len(twice):,} names occur more than once (first: {twice[0].as_py()}): rename them")
