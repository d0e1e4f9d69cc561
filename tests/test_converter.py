"""Plain values become dataclasses, or an error that names the place, what was found and what was expected."""

from dataclasses import dataclass
from typing import Literal

import pytest

from repa_pipe.converter import read_json, structure, unstructure
from repa_pipe.errors import ConfigError, StoreError


@dataclass(frozen=True, kw_only=True)
class Inner:
    count: int


@dataclass(frozen=True, kw_only=True)
class Outer:
    size: int = 1
    rate: float = 1.0
    path: Literal["linear", "cosine"] = "linear"
    names: tuple[str, ...] = ()
    inner: tuple[Inner, ...] = ()

    def __post_init__(self):
        if self.size < 0:
            raise StoreError("size is negative")


def test_values_survive_a_round_trip():
    outer = Outer(size=3, names=("a", "b"), inner=(Inner(count=1),))
    plain = unstructure(outer)
    assert plain["names"] == ["a", "b"]
    assert structure(plain, Outer, "here") == outer


def test_an_integer_is_accepted_for_a_float():
    assert structure({"rate": 2}, Outer, "here").rate == 2.0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sise": 1}, "here: unknown key 'sise'; expected size"),
        ({"zzz": 1}, "here: unknown key 'zzz'; expected size or rate or path or names or inner"),
        ({"inner": [{"count": 1, "extra": 2}]}, "here: inner: unknown key 'extra'; expected count"),
        ({"size": "1"}, "here: size: expected int, found str"),
        ({"size": True}, "here: size: expected int, found bool"),
        ({"inner": [{}]}, r"here: inner\[0\]: required key 'count' is missing"),
        ({"path": "round"}, "here: path: invalid enum value 'round'; expected linear or cosine"),
        ([], "here: expected object, found array"),
    ],
)
def test_what_cannot_be_structured_names_the_place(values, message):
    with pytest.raises(ConfigError, match=message):
        structure(values, Outer, "here")


def test_errors_of_the_dataclass_keep_their_class():
    with pytest.raises(StoreError, match="here: size is negative"):
        structure({"size": -1}, Outer, "here", ConfigError)


def test_files_that_hold_no_mapping_are_refused(tmp_path):
    path = tmp_path / "a.json"
    with pytest.raises(ConfigError, match="cannot be read"):
        read_json(path)
    path.write_text("[1]")
    with pytest.raises(ConfigError, match="holds a list, expected a JSON object"):
        read_json(path)
