"""Parquet files with an expected schema: read, or refused with what was found and expected, and in which column."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from .errors import ConfigError, RepaPipeError, first_line

if TYPE_CHECKING:
    import pyarrow as pa

MAX_ROWS = 1 << 27  # a small file may claim any number; ImageNet-21k has 14 million images


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """What a column must hold.

    Attributes:
        kind: integers, numbers (integers or floats), text, or exactly one type of Arrow.
        nullable: whether rows may lack a value.
        required: whether the file must have the column.
        at_least: lowest value, of numbers; those with a lowest value must be finite.
        increasing: whether every value must exceed the one before.
    """

    kind: Literal["integers", "numbers", "text", "int32", "int64", "string"]
    nullable: bool = False
    required: bool = True
    at_least: float | None = None
    increasing: bool = False


def read_parquet(
    path: Path,
    what: str,
    columns: Mapping[str, Column],
    *,
    remedy: str,
    error: type[RepaPipeError] = ConfigError,
    data: bytes | None = None,
    num_rows: int | None = None,
) -> pa.Table:
    """Read a parquet file.

    Args:
        path: the file.
        what: what it is, such as `a run's log`, for errors.
        columns: what it must hold; other columns may hold anything.
        remedy: what to do about a file that cannot be read, an imperative that ends the message.
        error: the class of the errors raised.
        data: contents of the file. None: read it.
        num_rows: rows that it must have. None: up to `MAX_ROWS`.

    Raises:
        error: the file is missing or damaged, has another number of rows, or a column is missing, occurs twice, or
            holds something else.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path if data is None else pa.BufferReader(data)) as file:
            problem = _why_not_rows(file.metadata.num_rows, num_rows)
            table = None if problem else file.read()
        if table is not None:
            table.validate(full=True)  # such as that text is UTF-8
    # OSError and ValueError are those of pyarrow; a damaged file may also fail in the decoding of its schema
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, OverflowError) as found:
        reason = " ".join(first_line(found).split())[:200]
        raise error(f"{path} cannot be read as {what} ({reason}): {remedy}") from found
    problem = problem or next(filter(None, (_why_not(table, name, each) for name, each in columns.items())), None)
    if problem:
        raise error(f"{path} is not {what}: {problem}; {remedy}")
    return table


def _why_not_rows(found: int, expected: int | None) -> str | None:
    """Return what is wrong with the number of rows, before they are read; None: nothing."""
    if expected is not None:
        return None if found == expected else f"it has {found:,} rows, expected {expected:,}"
    return None if found <= MAX_ROWS else f"it has {found:,} rows, expected at most {MAX_ROWS:,}"


def _why_not(table: pa.Table, name: str, column: Column) -> str | None:
    """Return what is wrong with a column; None: nothing."""
    count = table.column_names.count(name)
    if count == 0:
        found = ", ".join(f"{field.name} ({field.type})" for field in table.schema)[:200] or "no columns"
        return f"expected a column {name} of {column.kind}, found {found}" if column.required else None
    if count > 1:
        return f"{count} columns are called {name}, expected one"
    values = table.column(name)
    if not _is(column.kind, values.type):
        return f"column {name} is {values.type}, expected {column.kind}"
    return _why_not_values(values, name, column)


def _why_not_values(values: pa.ChunkedArray, name: str, column: Column) -> str | None:
    import pyarrow as pa
    import pyarrow.compute as pc

    if values.null_count and not column.nullable:
        return f"column {name} lacks a value in {values.null_count} rows, expected one in each"
    if column.at_least is not None:
        numbers = values.cast(pa.float64(), safe=False)
        in_range = pc.and_(pc.is_finite(numbers), pc.greater_equal(numbers, column.at_least))
        if not pc.all(in_range, min_count=0).as_py():
            low, high = (find(numbers).as_py() for find in (pc.min, pc.max))
            return f"column {name} holds {low:g} to {high:g}, expected {column.at_least:g} or more"
    if column.increasing and not pc.all(pc.greater(values[1:], values[:-1]), min_count=0).as_py():
        return f"column {name} does not increase from row to row"
    return None


def _is(kind: str, found: pa.DataType) -> bool:
    import pyarrow as pa

    if kind == "text":
        return bool(pa.types.is_string(found) or pa.types.is_large_string(found))
    if kind in ("integers", "numbers"):
        return bool(pa.types.is_integer(found) or (kind == "numbers" and pa.types.is_floating(found)))
    return str(found) == kind
