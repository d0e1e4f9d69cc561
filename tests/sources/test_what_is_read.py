"""The table of docs/sources.md is generated, and every row is what happens."""

import importlib.util
from pathlib import Path

import pytest

from repa_pipe.errors import BadImageError, SourceError
from repa_pipe.sources import SourceOptions, decode_crop, open_source

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
    if case.outcome == "refused":
        with pytest.raises(SourceError) as refused:
            open_source(str(path), None, SourceOptions(**case.options)).index()
        assert case.detail in str(refused.value)
        return
    source = open_source(str(path), None, SourceOptions(**case.options))
    good = () if case.alone else tuple(rows.GOOD)
    keys = tuple(key.replace("{kind}", kind) for key in case.keys)
    assert sorted(source.index()["key"].to_pylist()) == sorted(good + keys)
    assert source.class_names == case.classes
    assert [each.reason for each in source.skipped] == ([case.detail] if case.outcome == "skipped" else [])


@pytest.mark.parametrize("case", rows.FILES, ids=[case.found for case in rows.FILES])
def test_every_example_of_an_image_has_the_outcome_of_its_row(case):
    if case.outcome == "read":
        assert decode_crop(case.data, 16).shape == (16, 16, 3)
        return
    with pytest.raises(BadImageError) as broken:
        decode_crop(case.data, 16)
    assert case.detail in str(broken.value)
