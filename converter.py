"""The one way in and out of JSON and TOML: configs, manifests, commit records, store metadata, sweeps.

Values that come from a file are never trusted: unknown keys, missing keys, wrong types and values outside a `Literal`
are refused with the place where they were found. Types are exact, except that an integer is accepted for a float.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, Literal, TypeVar

import msgspec
import tomli_w

from .errors import ConfigError, RepaPipeError

T = TypeVar("T")

# The resolved field types of a dataclass. Without the cache, reading ImageNet's commit records takes 4 times as long.
hints_of: Callable[[Any], dict[str, Any]] = functools.cache(typing.get_type_hints)


def structure(values: object, kind: type[T], where: str, error: type[RepaPipeError] = ConfigError) -> T:
    """Build an instance of the dataclass `kind` from plain values, as JSON or TOML hold them.

    Args:
        values: a mapping from field names to values; lists become tuples where the field is a tuple.
        kind: the dataclass. Errors that its `__post_init__` raises are passed on, with `where` in front.
        where: the file, and the place in it, that errors name.
        error: the class of the errors raised.

    Raises:
        error: a key is unknown or missing, or a value has another type than its field.
    """
    _require_known_keys(values, kind, where, error)
    try:
        return msgspec.convert(values, kind)
    except (msgspec.ValidationError, RepaPipeError) as problem:
        own = problem if isinstance(problem, RepaPipeError) else problem.__cause__
        if isinstance(own, RepaPipeError):
            raise type(own)(f"{where}: {own}") from problem
        raise error(f"{where}: {_describe(str(problem), kind)}") from problem
    except (UnicodeError, OverflowError, RecursionError) as problem:
        raise error(f"{where}: {problem}") from problem


def unstructure(instance: Any) -> dict[str, Any]:
    """Return a dataclass instance as plain JSON values: tuples become lists, nested dataclasses mappings."""
    values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(instance)))
    return values


def read_json(path: Path, error: type[RepaPipeError] = ConfigError) -> dict[str, Any]:
    """Read a JSON file that holds a mapping; raises `error` when it is missing or damaged."""
    try:
        values = parse_json(path.read_bytes(), str(path), error)
    except OSError as problem:
        raise error(f"{path} cannot be read ({problem})") from problem
    if not isinstance(values, dict):
        raise error(f"{path} holds a {type(values).__name__}, expected a JSON object")
    return values


def parse_json(data: bytes, where: str, error: type[RepaPipeError] = ConfigError) -> Any:
    """Return the values in JSON text; raises `error`, naming `where`, when it is not valid."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as problem:
        raise error(f"{where} cannot be read ({problem})") from problem


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
            near = difflib.get_close_matches(str(key), known, n=3) or known
            raise error(f"{where}: unknown key {key!r}; expected {' or '.join(near)}")


def to_toml(values: Mapping[str, Any]) -> str:
    """Return plain values as TOML, without those that are None, which TOML cannot hold."""
    return tomli_w.dumps({name: value for name, value in values.items() if value is not None})


def _require_known_keys(values: object, kind: Any, where: str, error: type[RepaPipeError]) -> None:
    """Refuse keys that are no field, at any depth: msgspec ignores them for dataclasses."""
    if isinstance(values, Mapping) and dataclasses.is_dataclass(kind):
        hints = hints_of(kind)
        require_known_keys(values, [field.name for field in dataclasses.fields(kind)], where, error)
        for key, value in values.items():
            _require_known_keys(value, hints[key], f"{where}: {key}", error)
    elif isinstance(values, list | tuple):
        for value in values:
            for inner in typing.get_args(kind):
                _require_known_keys(value, inner, where, error)


def _describe(problem: str, kind: Any) -> str:
    """Turn msgspec's message into `batch_size: expected int, found str`."""
    message, _, place = problem.partition(" - at `$")
    name = place.rstrip("`").lstrip(".")
    message = re.sub(r"Expected `(.*?)`, got `(.*?)`", r"expected \1, found \2", message)
    missing = re.fullmatch(r"Object missing required field `(.*)`", message)
    if missing:
        return f"{name + ': ' if name else ''}required key {missing.group(1)!r} is missing"
    choices = choices_of(hints_of(kind).get(name, NoneType))
    if choices:
        message = f"{message[0].lower()}{message[1:]}; expected {' or '.join(map(str, choices))}"
    return f"{name}: {message}" if name else message
