"""Paths in settings: one spelling per place, so that a run, a store or a file is recognized however it was written."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Any


class PathKind(StrEnum):
    """What the text of a field stands for."""

    PATH = "path"  # a file or folder, or a URL
    NAMED = "named"  # NAME=PATH
    MODEL = "model"  # the name of a model, or its folder; the text is part of names in a store


_NAME_WITH_OPTIONS = re.compile(r"([^=@]+@\w+=[^=+]+(?:\+\w+=[^=+]+)*)(=)(.*)", re.DOTALL)


def split_named(text: str) -> tuple[str, str, str]:
    """Split `NAME=PATH` into the name, `=` and the path; the name of an encoder may have options, as `@norm=plain`."""
    found = _NAME_WITH_OPTIONS.fullmatch(text)
    name, separator, path = found.groups() if found else text.partition("=")
    return name, separator, path


def plain(text: str, kind: PathKind) -> str:
    """Return the shortest spelling, with the home folder in place of `~`; symbolic links and `..` stay."""
    if kind is PathKind.NAMED:
        name, separator, rest = split_named(text)
        return name + separator + plain(rest, PathKind.PATH)
    if not text or "://" in text:
        return text.rstrip("/")
    path = Path(text)
    with suppress(RuntimeError):  # no such user: a folder whose name starts with ~
        path = path.expanduser()
    if kind is PathKind.MODEL:  # only what was no model before: `./vae` and `vae` have different names in a store
        return str(path) if text.startswith("~") else text.rstrip("/") or text
    return str(path)


def absolute(text: str, kind: PathKind) -> str:
    """Return the text for a process with another current folder. Names of models stay: they are names in a store."""
    if kind is PathKind.NAMED:
        name, separator, path = split_named(text)
        return name + separator + absolute(path, PathKind.PATH)
    if kind is PathKind.MODEL or not text or "://" in text:
        return text
    return str(Path(text).absolute())


def same(one: object, other: object, kind: PathKind = PathKind.PATH) -> bool:
    """Return whether two texts mean the same file or folder here, through symbolic links as well."""
    return one == other or (isinstance(one, str) and isinstance(other, str) and place(one, kind) == place(other, kind))


def same_settings(recorded: Mapping[str, Any] | None, found: Mapping[str, Any]) -> bool:
    """Return whether recorded settings equal others, whose `store` may be the same one by another path."""
    if recorded is None or not same(recorded.get("store"), found["store"]):
        return False
    return {**recorded, "store": None} == {**found, "store": None}


def place(text: str, kind: PathKind = PathKind.PATH) -> str:
    """Return the absolute path without links, the same for all spellings of a file or folder; URLs stay."""
    text = absolute(plain(text, kind), kind)
    if kind is PathKind.NAMED:
        name, separator, path = split_named(text)
        return name + separator + os.path.realpath(path)
    return text if kind is PathKind.MODEL or "://" in text else os.path.realpath(text)
