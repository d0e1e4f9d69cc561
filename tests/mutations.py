"""Mutations of structured files: what a damaged, hand-edited or hostile JSON, TOML or parquet file may hold.

`mutations_of(path, count, seed)` yields named variants of a file, the same ones every time: first every single change
of every value in it, in random order, then combinations of two changes. `survives` calls a reader with a time limit and
returns its result, or the error that it raised on purpose. Tests get this module as the fixture `mutations`.
"""

from __future__ import annotations

import copy
import io
import itertools
import json
import math
import random
import signal
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import tomli_w

from repa_pipe.errors import RepaPipeError

LIMIT_S = 20.0
"""Time limit of one call. Readers take milliseconds; this machine may be busy."""

LONGEST = 2_000
"""Characters of the longest message that is still read as one line."""


class Mutation(NamedTuple):
    """A variant of a file: the change in words, and the bytes of the file."""

    name: str
    data: bytes


class Raw(str):
    """Text that is written into JSON or TOML as it is, for values that Python's writers refuse."""

    __slots__ = ()


class HangError(AssertionError):
    """A call took longer than its time limit."""


def survives(call: Callable[[], Any], limit_s: float = LIMIT_S) -> tuple[Any, RepaPipeError | None]:
    """Return what `call` returned and None, or None and its RepaPipeError; other errors and hangs are not caught.

    The message of the error must be one line.
    """
    refused = None
    with time_limit(limit_s):
        try:
            return call(), None
        except RepaPipeError as error:
            refused = error
    assert len(str(refused).splitlines()) == 1, f"not one line: {refused}"
    assert len(str(refused)) < LONGEST, f"not one line: {str(refused)[:LONGEST]}…"
    return None, refused


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise HangError in the block after a time; only in the main thread."""

    def stop(*_: object) -> None:
        raise HangError(f"no result after {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def mutations_of(path: Path, count: int, seed: int = 0) -> list[Mutation]:
    """Return `count` variants of a JSON, TOML or parquet file: all different, and none the file itself."""
    data = path.read_bytes()
    of_kind = {".json": json_mutations, ".toml": toml_mutations, ".parquet": parquet_mutations}
    variants = of_kind.get(path.suffix, byte_mutations)(data, seed)
    found: dict[bytes, str] = {}
    while len(found) < count:
        name, changed = next(variants)
        if changed != data:
            found.setdefault(changed, name)
    return [Mutation(name, changed) for changed, name in found.items()]


def json_mutations(data: bytes, seed: int = 0) -> Iterator[Mutation]:
    """Yield variants of JSON text, endlessly."""
    return _text_mutations(data, json.loads(data), json_text, seed)


def toml_mutations(data: bytes, seed: int = 0) -> Iterator[Mutation]:
    """Yield variants of TOML text, endlessly."""
    return _text_mutations(data, tomllib.loads(data.decode()), toml_text, seed)


def json_text(values: Any) -> bytes:
    """Return values as JSON, with Raw values as they are, and NaN and Infinity as Python writes them."""
    return _text(values, lambda marked: json.dumps(marked, ensure_ascii=True, indent=1))


def toml_text(values: Any) -> bytes:
    """Return a table as TOML, with Raw values as they are, and without None, which TOML cannot hold."""
    return _text(values, lambda marked: tomli_w.dumps(_without_none(marked)))


# --- Trees of values -------------------------------------------------------------------------------------------------

Path_ = tuple[Any, ...]
Change = tuple[str, Callable[[Any], Any]]

DEPTH = 100_000
_VALUES: dict[str, Any] = {
    "null": None,
    "true": True,
    "false": False,
    "zero": 0,
    "one": 1,
    "minus one": -1,
    "an integer": 7,
    "2^31": 2**31,
    "2^63": 2**63,
    "2^64": 2**64,
    "minus 2^70": -(2**70),
    "4,000 digits": 10**4_000,
    "6,000 digits": Raw("1" + "0" * 6_000),
    "a fraction": 0.5,
    "a whole float": 3.0,
    "a huge float": 1e300,
    "a tiny float": 5e-324,
    "an overflowing float": Raw("1e999"),
    "NaN": math.nan,
    "Infinity": math.inf,
    "-Infinity": -math.inf,
    "empty text": "",
    "text": "mutated",
    "a number as text": "12",
    "very long text": "x" * 100_000,
    "text with NUL": "a\0b",
    "text with newlines and escapes": "a\nb\x1b[31m\r",
    "a lone surrogate": Raw('"\\ud800"'),
    "a path upward": "../../../../etc/passwd",
    "an absolute path": "/dev/zero",
    "dots": "..",
    "other writing": "ﬁ\u202eİ\u0301😀",
    "empty list": [],
    "list": [1, "a", None],
    "list of lists": [[[]]],
    "list of 10,000": [0] * 10_000,
    "empty mapping": {},
    "mapping": {"a": 1},
    "mapping in mapping": {"a": {"b": {"c": []}}},
    "mapping with an odd key": {"": {"\0": 0}},
    "nested deeply": Raw("[" * DEPTH + "]" * DEPTH),
    "mappings nested deeply": Raw('{"a":' * DEPTH + "1" + "}" * DEPTH),
    "nested 500 deep": Raw("[" * 500 + "]" * 500),
}


def tree_mutations(values: Any, seed: int = 0) -> Iterator[tuple[str, Any]]:
    """Yield named variants of a tree of dicts, lists and scalars: every single change in random order, then pairs."""
    draws = random.Random(seed)
    changes = _changes(values)
    draws.shuffle(changes)
    for name, change in changes:
        yield name, change(values)
    while True:
        (first, change), (second, then) = draws.sample(changes, 2)
        try:
            yield f"{first}; {second}", then(change(values))
        except (KeyError, IndexError, TypeError, AttributeError):
            continue  # the first change removed the place of the second


def _changes(values: Any) -> list[Change]:
    return [change for place in _places(values) for change in _changes_at(place, values)]


def _places(values: Any, place: Path_ = ()) -> Iterator[Path_]:
    """Yield the place of every value; of a long list the first two and the last."""
    yield place
    if isinstance(values, dict):
        for key, value in values.items():
            yield from _places(value, (*place, key))
    elif isinstance(values, list):
        for index in sorted({0, 1, len(values) - 1} & set(range(len(values)))):
            yield from _places(values[index], (*place, index))


def _changes_at(place: Path_, values: Any) -> Iterator[Change]:
    where = ".".join(map(str, place)) or "all"
    found = _at(values, place)
    for name, value in _VALUES.items():
        if type(value) is not type(found) or value != found:
            yield f"{where} = {name}", _set(place, value)
    yield f"{where} in a list", _set(place, [found])
    yield f"{where} in a mapping", _set(place, {"value": found})
    if isinstance(found, bool):
        yield f"{where} = the other", _set(place, not found)
    elif isinstance(found, int | float):
        for name, value in {"as text": str(found), "negative": -found, "plus one": found + 1}.items():
            if value != found:
                yield f"{where} {name}", _set(place, value)
        if isinstance(found, int):
            yield f"{where} as a float", _set(place, float(found))
    elif isinstance(found, str):
        for name, text in {"longer": found + "x", "in capitals": found.upper(), "with a space": f" {found}"}.items():
            if text != found:
                yield f"{where} {name}", _set(place, text)
    elif isinstance(found, list) and found:
        yield f"{where} one shorter", _set(place, found[:-1])
        yield f"{where} one longer", _set(place, [*found, found[-1]])
        yield f"{where} reversed", _set(place, found[::-1] if found[::-1] != found else [])
    if isinstance(found, dict):
        yield f"{where}: an unknown key", _set(place, {**found, "unknown_key": 1})
    if place and isinstance(_at(values, place[:-1]), dict):
        yield f"{where} dropped", _replace_key(place, None)
        yield f"{where} renamed", _replace_key(place, f"{place[-1]}_x")
        yield f"{where} in capitals as a key", _replace_key(place, str(place[-1]).upper())


def _at(values: Any, place: Path_) -> Any:
    for key in place:
        values = values[key]
    return values


def _copy_and_parent(values: Any, place: Path_) -> tuple[Any, Any]:
    """Return a copy and, in it, what holds a place; KeyError if an earlier change removed the place."""
    changed = copy.deepcopy(values)
    parent = _at(changed, place[:-1])
    if not isinstance(parent, dict | list):
        raise KeyError(place)
    _ = parent[place[-1]]
    return changed, parent


def _set(place: Path_, value: Any) -> Callable[[Any], Any]:
    def change(values: Any) -> Any:
        if not place:
            return copy.deepcopy(value)
        changed, parent = _copy_and_parent(values, place)
        parent[place[-1]] = copy.deepcopy(value)
        return changed

    return change


def _replace_key(place: Path_, name: str | None) -> Callable[[Any], Any]:
    """Drop the key at a place, or rename it and keep the order of keys."""

    def change(values: Any) -> Any:
        changed, parent = _copy_and_parent(values, place)
        entries = [(name if key == place[-1] else key, value) for key, value in parent.items()]
        parent.clear()
        parent.update((key, value) for key, value in entries if key is not None)
        return changed

    return change


def _text(values: Any, dump: Callable[[Any], str]) -> bytes:
    raw: list[str] = []

    def marked(value: Any) -> Any:
        if isinstance(value, Raw):
            raw.append(value)
            return f"raw-{len(raw) - 1}-raw"
        if isinstance(value, dict):
            return {key: marked(inner) for key, inner in value.items()}
        return [marked(inner) for inner in value] if isinstance(value, list) else value

    text = dump(marked(values))
    for index, value in enumerate(raw):
        text = text.replace(f'"raw-{index}-raw"', value)
    return text.encode("utf-8", "surrogatepass")


def _without_none(values: Any) -> Any:
    if isinstance(values, dict):
        return {key: _without_none(value) for key, value in values.items() if value is not None}
    return [_without_none(value) for value in values if value is not None] if isinstance(values, list) else values


def _text_mutations(data: bytes, values: Any, dump: Callable[[Any], bytes], seed: int) -> Iterator[Mutation]:
    """Yield one variant of the bytes after every fourth variant of the values."""
    trees, texts = tree_mutations(values, seed), byte_mutations(data, seed)
    for number in itertools.count():
        if number % 5 == 4:
            yield next(texts)
            continue
        name, changed = next(trees)
        try:
            written = dump(changed)
        except (TypeError, ValueError, AttributeError):  # what TOML or JSON cannot hold, such as a list as the file
            continue
        yield Mutation(name, written)


# --- Bytes -----------------------------------------------------------------------------------------------------------


def byte_mutations(data: bytes, seed: int = 0) -> Iterator[Mutation]:
    """Yield variants of bytes: fixed ones first, then random truncations, flips, insertions and repetitions."""
    draws = random.Random(seed)
    yield from itertools.starmap(Mutation, _fixed(data))
    while True:
        start = draws.randrange(max(1, len(data)))
        stop = min(len(data), start + draws.choice((1, 2, 10, 100)))
        noise = draws.randbytes(draws.choice((1, 4, 64)))
        name, changed = draws.choice(
            (
                (f"truncated to {start} bytes", data[:start]),
                (f"bit {start % 8} of byte {start} flipped", _flipped(data, start)),
                (f"bytes {start} to {stop} removed", data[:start] + data[stop:]),
                (f"bytes {start} to {stop} twice", data[:stop] + data[start:]),
                (f"bytes {start} to {stop} zero", data[:start] + bytes(stop - start) + data[stop:]),
                (f"{len(noise)} random bytes inserted at {start}", data[:start] + noise + data[start:]),
            )
        )
        yield Mutation(name, changed)


def _flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :] if data else b"\0"


def _fixed(data: bytes) -> Iterator[tuple[str, bytes]]:
    yield "empty", b""
    yield "one byte short", data[:-1]
    yield "first byte only", data[:1]
    yield "byte order mark", b"\xef\xbb\xbf" + data
    yield "UTF-16", data.decode("utf-8", "replace").encode("utf-16")
    yield "Latin-1 bytes", data.replace(b"e", b"\xe9")
    yield "NUL at the end", data + b"\0"
    yield "NUL bytes only", bytes(len(data))
    yield "newlines only", b"\n" * len(data)
    yield "twice", data + data
    yield "text after the end", data + b"\nx"
    yield "deep nesting only", b"[" * DEPTH
    yield "every key twice", _every_key_twice(data)
    yield "single quotes", data.replace(b'"', b"'")
    yield "colons removed", data.replace(b":", b"")
    yield "equals signs removed", data.replace(b"=", b"")


def _every_key_twice(data: bytes) -> bytes:
    """Return a JSON object whose keys all occur twice; other files as their contents twice."""
    text = data.strip()
    if text.startswith(b"{") and text.endswith(b"}") and len(text) > 2:
        return b"{" + text[1:-1] + b"," + text[1:-1] + b"}"
    return data + b"\n" + data


# --- Tables ----------------------------------------------------------------------------------------------------------

_TYPES = (
    pa.string(),
    pa.large_string(),
    pa.binary(),
    pa.bool_(),
    pa.int8(),
    pa.int32(),
    pa.int64(),
    pa.uint64(),
    pa.float16(),
    pa.float32(),
    pa.float64(),
    pa.null(),
    pa.date32(),
    pa.timestamp("us"),
    pa.decimal128(20, 2),
    pa.list_(pa.int64()),
    pa.struct([("a", pa.int64())]),
    pa.dictionary(pa.int32(), pa.string()),
)


def parquet_mutations(data: bytes, seed: int = 0) -> Iterator[Mutation]:
    """Yield variants of a parquet file, endlessly."""
    tables, texts = table_mutations(pq.read_table(pa.BufferReader(data)), seed), byte_mutations(data, seed)
    for number in itertools.count():
        if number % 5 == 4:
            yield next(texts)
            continue
        name, table = next(tables)
        with io.BytesIO() as file:
            pq.write_table(table, file)
            yield Mutation(name, file.getvalue())


def table_mutations(table: pa.Table, seed: int = 0) -> Iterator[tuple[str, pa.Table]]:
    """Yield named variants of a table: every single change in random order, then pairs."""
    draws = random.Random(seed)
    changes = [*_changes_of_rows(table), *(change for name in table.column_names for change in _changes_of(name))]
    draws.shuffle(changes)
    for name, change in changes:
        changed = _attempt(change, table)
        if changed is not None:
            yield name, changed
    while True:
        (first, change), (second, then) = draws.sample(changes, 2)
        between = _attempt(change, table)
        changed = None if between is None else _attempt(then, between)
        if changed is not None:
            yield f"{first}; {second}", changed


def _attempt(change: Callable[[pa.Table], pa.Table], table: pa.Table) -> pa.Table | None:
    """Return the changed table; None if the change does not apply, or cannot be written as parquet."""
    try:
        changed = change(table)
        pq.write_table(changed, io.BytesIO())
    except (
        KeyError,
        IndexError,
        ValueError,
        TypeError,
        OverflowError,
        NotImplementedError,
    ):  # pyarrow's derive from them
        return None
    return changed


def _changes_of_rows(table: pa.Table) -> list[Change]:
    return [
        ("no rows", lambda found: found.slice(0, 0)),
        ("one row", lambda found: found.slice(0, 1)),
        ("last row missing", lambda found: found.slice(0, len(found) - 1)),
        ("first row missing", lambda found: found.slice(1)),
        ("rows twice", lambda found: pa.concat_tables([found, found])),
        ("rows reversed", lambda found: found.take(list(range(len(found)))[::-1])),
        ("no columns", lambda found: found.select([])),
        ("columns reversed", lambda found: found.select(found.column_names[::-1])),
        ("an unknown column", lambda found: found.append_column("unknown_column", pa.array(range(len(found))))),
        ("all columns empty", lambda found: pa.table({name: pa.nulls(len(found)) for name in found.column_names})),
    ]


def _changes_of(name: str) -> Iterator[Change]:
    def replaced(make: Callable[[list[Any]], Sequence[Any]], kind: pa.DataType | None = None) -> Callable[..., Any]:
        def change(table: pa.Table) -> pa.Table:
            column = table[name]
            values = make(column.to_pylist())
            return table.set_column(table.column_names.index(name), name, pa.array(values, kind or column.type))

        return change

    def renamed(table: pa.Table) -> pa.Table:
        return table.rename_columns([f"{name}_x" if each == name else each for each in table.column_names])

    yield f"{name} dropped", lambda table: table.drop_columns([name])
    yield f"{name} renamed", renamed
    yield f"{name} occurs twice", lambda table: table.append_column(name, table[name])
    yield f"{name} null", replaced(lambda values: [None] * len(values))
    yield f"{name} null in the first row", replaced(lambda values: [None, *values[1:]])
    yield f"{name} null in the last row", replaced(lambda values: [*values[:-1], None])
    yield f"{name} constant", replaced(lambda values: [values[0]] * len(values))
    yield f"{name} reversed", replaced(lambda values: values[::-1])
    for value in (math.nan, math.inf, -math.inf, 0, -1, 2**31, 2**62, 1e300, "", "a\0b", "../../etc", "x" * 100_000):
        text = str(value)[:20]
        yield f"{name} {text!r} in the first row", replaced(lambda values, value=value: [value, *values[1:]])
        yield f"{name} {text!r} in the last row", replaced(lambda values, value=value: [*values[:-1], value])
    for kind in _TYPES:
        yield (
            f"{name} as {kind}",
            lambda table, kind=kind: table.set_column(table.column_names.index(name), name, table[name].cast(kind)),
        )
        yield f"{name} as empty {kind}", replaced(lambda values: [None] * len(values), kind)
    yield f"{name} in lists", replaced(lambda values: [[value] for value in values], pa.list_(pa.float64()))
    yield f"{name} as text", replaced(lambda values: [str(value) for value in values], pa.string())
    yield f"{name} as bytes that are not UTF-8", replaced(lambda values: [b"\xff"] * len(values), pa.binary())
