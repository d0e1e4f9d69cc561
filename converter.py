"""The one way in and out of JSON and TOML: configs, manifests, commit records, store metadata, sweeps.

Values that come from a file are never trusted: unknown keys, missing keys, wrong types and values outside a `Literal`
or the range of a `msgspec.Meta` are refused with the place where they were found. Types are exact, except that an
integer is accepted for a float. Size and depth of files are bounded, integers have 64 bits, and no key occurs twice.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import os
import re
import stat
import tomllib
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec
import tomli_w

from .errors import ConfigError, RepaPipeError

T = TypeVar("T")

MAX_BYTES = 64 << 20  # of a JSON file; the largest that repa-pipe writes have a few megabytes
MAX_TOML_BYTES = 1 << 20  # a sweep of a thousand runs has a tenth
MAX_DEPTH = 64  # of mappings and lists in each other
_LONGEST_KEY = 80  # characters, in messages
_FAR_KEYS = 20  # keys in a message about one that resembles none of them

# Text that may stand for an integer beyond 64 bits, after `_ALIKE`, or for half a character. Searching for fixed bytes
# takes a twentieth of the time of a regular expression, which took most of the time of reading a commit record.
_ALIKE = bytes.maketrans(b"123456789D", b"000000000d")
_SUSPECT = (b"0" * 19, b"\\ud")

# The resolved field types of a dataclass. Without the cache, reading ImageNet's commit records takes 4 times as long.
hints_of: Callable[[Any], dict[str, Any]] = functools.cache(typing.get_type_hints)


def structure(values: object, kind: type[T], where: str, error: type[RepaPipeError] = ConfigError) -> T:
    """Build an instance of the dataclass or typed dict `kind` from plain values, as JSON or TOML hold them.

    Args:
        values: a mapping from field names to values; lists become tuples where the field is a tuple.
        kind: the class. Errors that its `__post_init__` raises are passed on, with `where` in front.
        where: the file, and the place in it, that errors name.
        error: the class of the errors raised.

    Raises:
        error: a key is unknown or missing, or a value has another type than its field, or is out of its range.
    """
    _require_known_keys(values, kind, where, error)
    try:
        return msgspec.convert(values, kind)
    except (msgspec.ValidationError, RepaPipeError) as problem:
        own = problem if isinstance(problem, RepaPipeError) else problem.__cause__
        if isinstance(own, RepaPipeError):
            raise type(own)(f"{where}: {own}") from problem
        raise error(f"{where}: {_describe(str(problem), values, kind)}") from problem
    except (UnicodeError, OverflowError, RecursionError) as problem:
        require_plain(values, where, error)
        raise error(f"{where}: {_reason(problem)}") from problem


def unstructure(instance: Any) -> dict[str, Any]:
    """Return a dataclass instance as plain JSON values: tuples become lists, nested dataclasses mappings."""
    values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(instance)))
    return values


def read_record(path: Path, kind: type[T], remedy: str, error: type[RepaPipeError] = ConfigError) -> T:
    """Read a JSON file that holds the fields of the dataclass `kind`.

    Args:
        path: the file.
        kind: the dataclass.
        remedy: what to do about a file that cannot be read, an imperative that ends the message.
        error: the class of the errors raised.

    Raises:
        error: the file is missing or damaged, or holds other fields.
    """
    try:
        return structure(read_json(path, error), kind, str(path), error)
    except RepaPipeError as problem:
        raise type(problem)(f"{problem}: {remedy}") from problem


def read_json(path: Path, error: type[RepaPipeError] = ConfigError, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """Read a JSON file that holds a mapping; raises `error` when it is missing, damaged, or larger than `max_bytes`."""
    try:
        values = parse_json(read_bounded(path, max_bytes, error), str(path), error)
    except OSError as problem:
        raise error(f"{path} cannot be read ({problem.strerror})") from problem
    if not isinstance(values, dict):
        raise error(f"{path} holds a {type(values).__name__}, expected a JSON object")
    return values


def read_bounded(path: Path, max_bytes: int = MAX_BYTES, error: type[RepaPipeError] = ConfigError) -> bytes:
    """Read a regular file; raises `error` when it is something else or too large, and OSError like `open`."""
    try:
        status = path.stat()
    except ValueError as problem:
        raise error(f"{shown(str(path))} is not a path ({problem})") from problem
    if not stat.S_ISREG(status.st_mode):
        raise error(f"{path} is not a file")  # opening a pipe would block
    if status.st_size > max_bytes:
        raise error(f"{path} has {status.st_size:,} bytes, expected at most {max_bytes:,}")
    with path.open("rb") as file:
        return file.read(max_bytes)


def parse_json(data: bytes, where: str, error: type[RepaPipeError] = ConfigError) -> Any:
    """Return the values in JSON text; raises `error`, naming `where`, when they are not those of valid, plain JSON.

    Unlike `json.loads`, it refuses keys that occur twice, integers beyond 64 bits, nesting beyond `MAX_DEPTH`, halves
    of characters, and other encodings than UTF-8. NaN and Infinity, which Python writes, are accepted.
    """
    try:
        values = json.loads(data.decode("utf-8-sig"), object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as problem:
        raise error(f"{where} cannot be read ({_reason(problem)})") from problem
    if data.count(b"[") + data.count(b"{") > MAX_DEPTH or _is_suspect(data):
        require_plain(values, where, error)
    return values


def _is_suspect(data: bytes) -> bool:
    alike = data.translate(_ALIKE)
    return any(text in alike for text in _SUSPECT)


def read_toml(file: Traversable, where: str, remedy: str = "") -> dict[str, Any]:
    """Return the contents of a TOML file; raise ConfigError, naming `where`, when it cannot be read."""
    try:
        with file.open("rb") as opened:  # which may be a pipe
            data = opened.read(MAX_TOML_BYTES + 1)
        if len(data) > MAX_TOML_BYTES:
            raise ValueError(f"it has more than {MAX_TOML_BYTES:,} bytes")
        values = tomllib.loads(data.decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as problem:
        raise ConfigError(f"{where} cannot be read ({_reason(problem)}){remedy}") from problem
    require_plain(values, where)
    return values


def require_plain(values: object, where: str, error: type[RepaPipeError] = ConfigError) -> None:
    """Raise `error` for anything but mappings with text as keys, lists, text, numbers of 64 bits, booleans and None.

    Values from JSON are checked when they are parsed; those of other formats may hold more kinds of values.
    """
    for place, value, depth in _walk(values):
        problem = f"it is nested more than {MAX_DEPTH} deep" if depth > MAX_DEPTH else _why_not_plain(value)
        if problem:
            raise error(f"{where}: {place + ': ' if place else ''}{problem}")


def shown(value: object, length: int = 80) -> str:
    """Return the `repr` of a value for a message: on one line, and of at most `length` characters."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of more than 4,300 digits, or deep nesting
        text = f"a {type(value).__name__} too large to show"
    text = " ".join(text.split())
    return text if len(text) <= length else f"{text[: length // 2]}…{text[-length // 4 :]}"


def choices_of(hint: object) -> tuple[Any, ...]:
    """Return the values of a `Literal[...]` or `Literal[...] | None` hint; empty for any other hint."""
    for kind in (hint, *typing.get_args(hint)):
        if typing.get_origin(kind) is Literal:
            return typing.get_args(kind)
    return ()


def require_known_keys(
    values: Mapping[str, Any], known: Sequence[str], where: str, error: type[RepaPipeError] = ConfigError
) -> None:
    """Raise `error`, with the nearest known keys, for a key that is not in `known`."""
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(str(key)[:_LONGEST_KEY], known, n=3) or known[:_FAR_KEYS]
            more = " or others" if len(near) < len(known) and len(near) == _FAR_KEYS else ""
            raise error(f"{where}: unknown key {shown(key)}; expected {' or '.join(near)}{more}")


def to_toml(values: Mapping[str, Any]) -> str:
    """Return plain values as TOML, without those that are None, which TOML cannot hold."""
    return tomli_w.dumps({name: value for name, value in values.items() if value is not None})


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        seen: set[str] = set()
        repeated = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {shown(repeated)} occurs twice")
    return values


def _reason(problem: BaseException) -> str:
    if isinstance(problem, UnicodeDecodeError):
        return f"it is not UTF-8 text: byte {problem.start}"
    return "it is nested too deeply" if isinstance(problem, RecursionError) else str(problem)


def _walk(values: object) -> Iterator[tuple[str, object, int]]:
    """Yield every value with its place, such as `runs[2].seed`, and its depth; without recursion."""
    stack: list[tuple[str, object, int]] = [("", values, 0)]
    while stack:
        place, value, depth = stack.pop()
        yield place, value, depth
        if depth > MAX_DEPTH:
            return  # the caller has seen it
        if isinstance(value, dict):
            inner = ((f"{place}.{_key_text(key)}".lstrip("."), each) for key, each in value.items())
        elif isinstance(value, list | tuple):
            inner = ((f"{place}[{index}]", each) for index, each in enumerate(value))
        else:
            continue
        stack.extend((name, each, depth + 1) for name, each in inner)


def _key_text(key: object) -> str:
    return key if isinstance(key, str) and key.isidentifier() and len(key) < _LONGEST_KEY else shown(key)


def _why_not_plain(value: object) -> str | None:
    """Return what is wrong with one value, not with those in it; None: nothing."""
    if isinstance(value, str):
        return None if is_text(value) else f"found {shown(value)}, which is not valid text"
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 64:
        return f"found {shown(value)}, expected an integer of at most 64 bits"
    if isinstance(value, dict):
        wrong = next((key for key in value if not (isinstance(key, str) and is_text(key))), None)
        return None if wrong is None else f"found the key {shown(wrong)}, expected text"
    if value is None or isinstance(value, int | float | list | tuple):
        return None
    return f"found a {type(value).__name__}, expected text, a number, true or false, or a list or mapping of these"


def is_text(text: str) -> bool:
    """Return whether a file may have this name; names that are not UTF-8 have surrogates."""
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return True


def _require_known_keys(values: object, kind: Any, where: str, error: type[RepaPipeError]) -> None:
    """Refuse keys that are no field, at any depth: msgspec ignores them for dataclasses and typed dicts."""
    if not _holds_fields(kind):
        return
    if isinstance(values, Mapping):
        fields = _fields(kind)
        if fields is not None:
            require_known_keys(values, list(fields), where, error)
            for key, value in values.items():
                _require_known_keys(value, fields[key], f"{where}: {key}", error)
        for inner in _arguments(kind, Mapping)[1:]:
            for key, value in values.items():
                _require_known_keys(value, inner, f"{where}: {_key_text(key)}", error)
    elif isinstance(values, list | tuple):
        for inner in _arguments(kind, Sequence):
            for value in values:
                _require_known_keys(value, inner, where, error)


@functools.cache
def _holds_fields(kind: Any) -> bool:
    """Return whether values of a type can have fields, themselves or in what they hold."""
    inner = (*_arguments(kind, Mapping)[1:], *_arguments(kind, Sequence))
    return _fields(kind) is not None or any(_holds_fields(each) for each in inner)


@functools.cache
def _fields(kind: Any) -> dict[str, Any] | None:
    """Return the fields, with their types, of a dataclass or typed dict, also as a member of a union; None: neither."""
    for each in _members(kind):
        if dataclasses.is_dataclass(each):
            hints = hints_of(each)
            return {field.name: hints[field.name] for field in dataclasses.fields(each)}
        if typing.is_typeddict(each):
            return hints_of(each)
    return None


@functools.cache
def _members(kind: Any) -> tuple[Any, ...]:
    """Return the types of a union; of another type itself."""
    return typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)


@functools.cache
def _arguments(kind: Any, container: type) -> tuple[Any, ...]:
    """Return the type arguments of the member of a type that is a container, such as `str, Any` of `dict[str, Any]`."""
    for each in _members(kind):
        origin = typing.get_origin(each)
        if isinstance(origin, type) and issubclass(origin, container):
            return typing.get_args(each)
    return ()


_PLACE = re.compile(r"\.([^.\[]+)|\[(\d+)\]|\[\.\.\.\]")


def _describe(problem: str, values: object, kind: Any) -> str:
    """Turn msgspec's message into `batch_size: expected int, found str`."""
    message, _, at = problem.rpartition(" - at `") if " - at `" in problem else (problem, "", "")
    is_key, at = at.startswith("key` in `"), at.removeprefix("key` in `").rstrip("`").removeprefix("$")
    name = at.lstrip(".") + (" key" if is_key else "")
    found, hint = _value_at(values, kind, at)
    message = re.sub(r"Expected `(.*?)`, got `(.*?)`", r"expected \1, found \2", message)
    missing = re.fullmatch(r"Object missing required field `(.*)`", message)
    if missing:
        return f"{name + ': ' if name else ''}required key {missing.group(1)!r} is missing"
    if message.startswith("Invalid enum value"):
        message = f"invalid enum value {shown(found)}"
    elif message.startswith("Expected") and not is_key:  # a range
        message = f"{message[0].lower()}{message[1:].replace('`', '')}, found {shown(found)}"
    choices = choices_of(hint)
    if choices:
        message = f"{message[0].lower()}{message[1:]}; expected {' or '.join(map(str, choices))}"
    return f"{name}: {message}" if name else message


def _value_at(values: Any, kind: Any, place: str) -> tuple[Any, Any]:
    """Return the value at a place of msgspec's messages, and its type where fields lead to it; None if unknown."""
    for name, index in _PLACE.findall(place):
        kind = (_fields(kind) or {}).get(name) if name else next(iter(_arguments(kind, Sequence)), None)
        try:
            values = values[name] if name else values[int(index)]
        except (KeyError, ValueError, TypeError, IndexError):
            return None, None
    return values, kind
