import hashlib

import pyarrow as pa
import pytest

from repa_pipe.errors import SourceError
from repa_pipe.sources import SCHEMA, Record, build_index, index_digest, records_of

RECORDS = [Record("a/1.png", 0, 10, "x:1"), Record("a/日本.png", 0, 20, "x:2"), Record("b/1.png", 1, -1, "y")]


def test_records_are_returned_in_order():
    index = build_index(RECORDS)
    assert index.schema == SCHEMA
    assert list(records_of(index)) == RECORDS
    assert list(records_of(index.slice(1, 1))) == RECORDS[1:2]
    other = index.select(["where", "num_bytes", "key", "label"]).append_column("status", [["ok"] * 3])
    assert list(records_of(other)) == RECORDS


def test_the_digest_matches_the_documentation():
    lines = "0 10 7 a/1.png\n0 20 8 a/日本.png\n1 -1 7 b/1.png\n"
    assert index_digest(build_index(RECORDS)) == hashlib.sha256(lines.encode()).hexdigest()


def test_the_digest_does_not_depend_on_locators_or_chunks():
    moved = build_index(Record(record.key, record.label, record.num_bytes, "elsewhere") for record in RECORDS)
    index = build_index(RECORDS)
    chunked = pa.concat_tables([index.slice(0, 1), index.slice(1)])
    assert chunked["key"].num_chunks == 2
    assert index_digest(moved) == index_digest(chunked) == index_digest(index)


@pytest.mark.parametrize(
    "other",
    [
        [RECORDS[1], RECORDS[0], RECORDS[2]],
        RECORDS[:2],
        [RECORDS[0], RECORDS[1], Record("b/1.png", 2, -1, "y")],
        [RECORDS[0], RECORDS[1], Record("b/1.png", 1, 0, "y")],
        [RECORDS[0], RECORDS[1], Record("b/2.png", 1, -1, "y")],
    ],
    ids=["order", "length", "label", "size", "key"],
)
def test_the_digest_depends_on_the_contents(other):
    assert index_digest(build_index(other)) != index_digest(build_index(RECORDS))


def test_a_key_with_newlines_cannot_imitate_several_records():
    one = build_index([Record("a\n0 1 1 b", 0, 1)])
    two = build_index([Record("a", 0, 1), Record("b", 0, 1)])
    assert index_digest(one) != index_digest(two)


def test_a_duplicate_key_is_refused():
    with pytest.raises(SourceError, match=r"1 names are not unique \(first: a/1.png\)"):
        build_index([*RECORDS, RECORDS[0]])


def test_a_name_that_is_not_utf8_is_shown_escaped():
    with pytest.raises(SourceError, match=r"'a\\udcff\.png' is not valid UTF-8"):
        build_index([Record("a\udcff.png", 0, 1)])


@pytest.mark.parametrize("label", [-1, 20_240_101, 1 << 40])
def test_a_label_that_is_not_a_class_number_is_refused(label):
    with pytest.raises(SourceError, match=f"b/2.png has label {label}: expected 0 to 999,999"):
        build_index([*RECORDS, Record("b/2.png", label, 1)])
