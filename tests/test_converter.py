"""Plain values become dataclasses, or an error that names the place, what was found and what was expected."""

import json
import os
from dataclasses import dataclass, field
from typing import Annotated, Literal

import msgspec
import pytest
import torch

from repa_pipe.converter import read_json, read_record, read_toml, require_plain, structure, unstructure
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


@dataclass(frozen=True, kw_only=True)
class Nested:
    inner: Inner | None = None
    named: dict[str, Inner] = field(default_factory=dict)
    maybe: tuple[Inner, ...] | None = None
    depth: Annotated[int, msgspec.Meta(ge=0)] = 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"inner": {"count": 1, "extra": 2}}, "here: inner: unknown key 'extra'; expected count"),
        ({"named": {"a": {"count": 1, "extra": 2}}}, "here: named: a: unknown key 'extra'; expected count"),
        ({"maybe": [{"count": 1, "extra": 2}]}, "here: maybe: unknown key 'extra'; expected count"),
        ({"depth": -1}, "here: depth: expected int >= 0, found -1"),
        ({"inner": {"count": "x"}}, "here: inner.count: expected int, found str"),
        ({"x" * 10_000: 1}, "here: unknown key 'x{39}…x{19}'; expected inner or named or maybe or depth"),
    ],
)
def test_unions_mappings_and_ranges_are_checked(values, message):
    with pytest.raises(ConfigError, match=message) as raised:
        structure(values, Nested, "here")
    assert len(str(raised.value)) < 200


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", r"cannot be read \(Expecting value"),
        (b'{"a": 1, "a": 2}', r"cannot be read \(the key 'a' occurs twice\)"),
        (b'{"a": {"b": 1, "b": 1}}', "the key 'b' occurs twice"),
        (b'{"a": 18446744073709551616}', "a: found 18446744073709551616, expected an integer of at most 64 bits"),
        (b'{"a": [' + b"9" * 5_000 + b"]}", "cannot be read"),
        (b'{"a": ["\\ud800"]}', r"a\[0\]: found '\\ud800', which is not valid text"),
        (b'{"a": "\xff"}', "it is not UTF-8 text: byte 7"),
        (b"[" * 100_000, "it is nested too deeply"),
        (b"[" * 100 + b"]" * 100, "it is nested more than 64 deep"),
        (b'{"a": 1}{"a": 1}', "Extra data"),
    ],
)
def test_json_that_has_no_one_meaning_is_refused(tmp_path, text, message):
    path = tmp_path / "a.json"
    path.write_bytes(text)
    with pytest.raises(StoreError, match=message) as raised:
        read_json(path, StoreError)
    assert str(raised.value).startswith(str(path))


def test_what_python_writes_is_read(tmp_path):
    values = {"a": [1.5, None, True, "é\udcff", 2**63 - 1, -(2**63)], "b": {"c": float("inf")}}
    path = tmp_path / "a.json"
    path.write_text(json.dumps(values))
    assert read_json(path) == values
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # as editors on Windows write it
    assert read_json(path) == values


@pytest.mark.parametrize("kind", ["folder", "pipe", "large"])
def test_what_is_no_file_of_this_size_is_not_read(tmp_path, kind):
    path = tmp_path / "a.json"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.write_bytes(b"[]")
        os.truncate(path, 2 << 30)
    with pytest.raises(ConfigError, match=f"{path} (is not a file|has 2,147,483,648 bytes, expected at most)"):
        read_json(path)
    with pytest.raises(ConfigError, match="is not a path"):
        read_json(tmp_path / "a\0b")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = 99999999999999999999", "a: found 99999999999999999999, expected an integer of at most 64 bits"),
        ("a = " + "[" * 10_000, "cannot be read"),
        ("a = " + "[" * 80 + "]" * 80, "nested more than 64 deep"),
        ("a = 1979-05-27", "a: found a date, expected text, a number"),
        ("a = 1\na = 2", "cannot be read"),
        ("#" * (2 << 20), r"cannot be read \(it has more than 1,048,576 bytes\)"),
    ],
)
def test_toml_is_bounded(tmp_path, text, message):
    path = tmp_path / "a.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as raised:
        read_toml(path, "sweep")
    assert str(raised.value).startswith("sweep")


def test_a_record_that_cannot_be_read_ends_with_the_remedy(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"count": 2.5}')
    with pytest.raises(StoreError, match=f"{path}: count: expected int, found float: delete it"):
        read_record(path, Inner, "delete it", StoreError)
    path.write_text('{"count": 2}')
    assert read_record(path, Inner, "delete it") == Inner(count=2)


@pytest.mark.parametrize("kind", ["tensor", "bytes", "integer", "set", "key"])
def test_values_that_json_cannot_hold_are_not_plain(kind):
    values = {"tensor": torch.zeros(2), "bytes": [b"x"], "integer": 10**5_000, "set": (set(),), "key": {1: 2}}
    with pytest.raises(ConfigError, match=r"here: x.*(found|expected)"):
        require_plain({"x": values[kind]}, "here")
    require_plain({"x": [1, 1.5, None, ("a", {"b": True})]}, "here")
