"""The table of docs/sources.md is generated, and every row is what happens."""

import importlib.util
from pathlib import Path

import pytest

from repa_pipe.errors import SourceError
from repa_pipe.sources import SourceOptions, open_source

_SPEC = importlib.util.spec_from_file_location("what_is_read", Path(__file__).with_name("what_is_read.py"))
rows = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(rows)
EXAMPLES = [(case, kind) for case in rows.CASES for kind in case.kinds]


def test_the_page_shows_the_table():
    page = rows.PAGE.read_text()
    assert page == rows.page_with_table(page), "run: python tests/sources/what_is_read.py"


@pytest.mark.parametrize(("case", "kind"), EXAMPLES, ids=[f"{kind}: {case.found}" for case, kind in EXAMPLES])
def test_every_example_has_the_outcome_of_its_row(tmp_path, case, kind):
    members = case.members if case.alone else rows.GOOD | case.members
    path = rows.WRITERS[kind](tmp_path / "example", members)
    source = open_source(str(path), None, SourceOptions(**case.options))
    if case.outcome == "refused":
        with pytest.raises(SourceError) as refused:
            source.index()
        assert case.detail in str(refused.value)
        return
    good = () if case.alone else tuple(rows.GOOD)
    assert sorted(source.index()["key"].to_pylist()) == sorted(good + case.keys)
    assert source.class_names == case.classes
    assert [each.reason for each in source.skipped] == ([case.detail] if case.outcome == "skipped" else [])
