"""Parquet files are read if they hold the expected columns, or refused with the column, and what to do."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from repa_pipe import parquet
from repa_pipe.errors import ConfigError, StoreError
from repa_pipe.parquet import Column, read_parquet

COLUMNS = {
    "step": Column(kind="integers", at_least=0, increasing=True),
    "loss": Column(kind="numbers", nullable=True),
    "name": Column(kind="text", required=False),
}


def read(path, **options):
    return read_parquet(path, "a run's log", COLUMNS, remedy="restore it from a copy", error=StoreError, **options)


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        ({"loss": [1.0]}, r"expected a column step of integers, found loss \(double\)"),
        ({"step": ["1"], "loss": [1.0]}, "column step is string, expected integers"),
        ({"step": [1.0], "loss": [1.0]}, "column step is double, expected integers"),
        ({"step": [True], "loss": [1.0]}, "column step is bool, expected integers"),
        ({"step": [1, None], "loss": [1.0, 2.0]}, "column step lacks a value in 1 rows, expected one in each"),
        ({"step": [-1, 1], "loss": [1.0, 2.0]}, "column step holds -1 to 1, expected 0 or more"),
        ({"step": [2, 1], "loss": [1.0, 2.0]}, "column step does not increase from row to row"),
        ({"step": [1, 1], "loss": [1.0, 2.0]}, "column step does not increase from row to row"),
        ({"step": [1], "loss": [[1.0]]}, "column loss is list<.*>, expected numbers"),
        ({"step": [1], "loss": [1.0], "name": [7]}, "column name is int64, expected text"),
    ],
)
def test_other_columns_than_expected_are_refused(tmp_path, columns, problem):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table(columns), path)
    with pytest.raises(StoreError, match=rf"{path} is not a run's log: {problem}; restore it from a copy"):
        read(path)


def test_expected_columns_are_read_with_others(tmp_path):
    path = tmp_path / "a.parquet"
    table = pa.table({"step": pa.array([1, 5], pa.uint8()), "loss": [None, float("nan")], "more": [[1], [2]]})
    pq.write_table(table, path)
    assert read(path).schema.names == ["step", "loss", "more"]
    pq.write_table(table.slice(0, 0), path)
    assert len(read(path)) == 0


def test_columns_with_one_name_text_that_is_not_utf_8_and_too_many_rows_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "a.parquet"
    pq.write_table(
        pa.Table.from_arrays([pa.array([1]), pa.array([2]), pa.array([1.0])], ["step", "step", "loss"]), path
    )
    with pytest.raises(StoreError, match="2 columns are called step, expected one"):
        read(path)
    wrong = pa.StringArray.from_buffers(1, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff"))
    pq.write_table(pa.table({"step": [1], "loss": [1.0], "name": wrong}), path)
    with pytest.raises(StoreError, match=r"cannot be read as a run's log \(.*UTF"):
        read(path)
    monkeypatch.setattr(parquet, "MAX_ROWS", 1)
    pq.write_table(pa.table({"step": [1, 2], "loss": [1.0, 2.0]}), path)
    with pytest.raises(StoreError, match="is not a run's log: it has 2 rows, expected at most 1;"):
        read(path)


def test_contents_and_their_number_of_rows_may_be_given(tmp_path, monkeypatch):
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"step": [1, 2], "loss": [1.0, 2.0]}), sink)
    data, path = sink.getvalue().to_pybytes(), tmp_path / "missing"
    assert len(read(path, data=data, num_rows=2)) == 2
    monkeypatch.setattr(parquet, "MAX_ROWS", 1)
    assert len(read(path, data=data, num_rows=2)) == 2
    monkeypatch.setattr(pq.ParquetFile, "read", None)  # refused before it is read
    with pytest.raises(StoreError, match=f"{path} is not a run's log: it has 2 rows, expected 3; restore"):
        read(path, data=data, num_rows=3)


def test_a_column_may_have_to_be_of_one_type(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"label": pa.array([1], pa.int64()), "key": ["a"]}), path)
    for name, kind, expected in (("label", "int64", "int32"), ("key", "string", "int64")):
        columns = {name: Column(kind=kind)}
        assert len(read_parquet(path, "a sample index", columns, remedy="restore it")) == 1
        with pytest.raises(ConfigError, match=f"column {name} is {kind}, expected {expected}"):
            read_parquet(path, "a sample index", {name: Column(kind=expected)}, remedy="restore it")


def test_mutated_files_are_read_or_refused(tmp_path, mutations):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"step": [1, 2, 3], "loss": [1.0, 0.5, 0.25], "name": ["a", "b", "c"]}), path)
    for name, data in mutations.mutations_of(path, 150):
        path.write_bytes(data)
        found, refused = mutations.survives(lambda: read(path).to_pylist())
        assert refused or all(type(row["step"]) is int for row in found), name
