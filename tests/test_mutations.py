"""The mutator changes what it says, is the same every time, and reaches every value of a file."""

import json
import tomllib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from repa_pipe.errors import ConfigError

VALUES = {"seed": 3, "rate": 0.5, "name": "a", "flag": True, "list": [1, 2, 3, 4], "inner": {"x": None}}


@pytest.fixture
def files(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(VALUES))
    (tmp_path / "a.toml").write_text('seed = 3\nnames = ["a"]\n[inner]\nx = 0.5\n')
    pq.write_table(pa.table({"step": [1, 2, 3], "name": ["a", "b", "c"]}), tmp_path / "a.parquet")
    return [tmp_path / f"a.{ending}" for ending in ("json", "toml", "parquet")]


def test_mutations_are_the_same_every_time_and_all_differ(files, mutations):
    for path in files:
        first = mutations.mutations_of(path, 600)
        assert first == mutations.mutations_of(path, 600)
        assert first[:50] != mutations.mutations_of(path, 50, seed=1)
        assert len({data for _, data in first} - {path.read_bytes()}) == 600


def test_every_value_is_dropped_renamed_and_replaced(mutations):
    names = {name for (name, _), _ in zip(mutations.tree_mutations(VALUES), range(700), strict=False)}
    for place in ("seed", "inner.x", "list"):
        assert {f"{place} dropped", f"{place} renamed", f"{place} = text", f"{place} = nested deeply"} <= names
    assert {"list.0 = null", "list.1 = null", "list.3 = null"} <= names
    assert "list.2 = null" not in names


def test_changes_are_applied_to_a_copy(mutations):
    changed = dict(pair for pair, _ in zip(mutations.tree_mutations(VALUES), range(700), strict=False))
    assert "seed" not in changed["seed dropped"]
    assert changed["seed as text"]["seed"] == "3"
    assert changed["inner.x renamed"]["inner"] == {"x_x": None}
    assert VALUES["seed"] == 3
    assert VALUES["inner"] == {"x": None}


def test_values_that_writers_refuse_are_written(mutations):
    assert mutations.json_text({"a": mutations.Raw("1e999")}) == b'{\n "a": 1e999\n}'
    assert tomllib.loads(mutations.toml_text({"a": None, "b": 1}).decode()) == {"b": 1}


def test_a_hang_and_an_unexpected_error_are_not_survived(mutations):
    def fail(error):
        raise error

    refused = ConfigError("one line")
    assert mutations.survives(lambda: 1) == (1, None)
    assert mutations.survives(lambda: fail(refused)) == (None, refused)
    with pytest.raises(KeyError):
        mutations.survives(lambda: fail(KeyError("x")))
    with pytest.raises(AssertionError, match="not one line"):
        mutations.survives(lambda: fail(ConfigError("two\nlines")))
    with pytest.raises(mutations.HangError):
        mutations.survives(lambda: [None for _ in iter(int, 1)], limit_s=0.1)
