"""Opens a source by its path and, optionally, its kind."""

import glob
import importlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import SourceError
from .image_folder import FolderSource
from .options import DEFAULTS, SourceOptions
from .parquet_files import ParquetSource
from .source import Source
from .tar_shards import TarSource
from .tree import is_image
from .zip_archive import ZipSource

KINDS: dict[str, Callable[[str, SourceOptions], Source]] = {
    "folder": FolderSource,
    "zip": ZipSource,
    "tar": TarSource,
    "parquet": ParquetSource,
}

_ENDINGS = {
    ".zip": "zip",
    ".tar": "tar",
    ".tar.gz": "tar",  # TarSource refuses compressed archives with the reason
    ".tgz": "tar",
    ".tar.bz2": "tar",
    ".tar.xz": "tar",
    ".tar.zst": "tar",
    ".parquet": "parquet",
}


def open_source(path: str, kind: str | None = None, options: SourceOptions = DEFAULTS) -> Source:
    """Open a source of images. This is fast: nothing is listed yet.

    Args:
        path: a folder, an archive, a parquet file, or a glob; see docs/sources.md.
        kind: `folder`, `zip`, `tar`, `parquet`, or `MODULE:CALLABLE` for a plug-in, which is called with `path` and
            returns a Source. None: infer the kind from the path.
        options: how to read a source whose files allow several readings.

    Raises:
        SourceError: the path does not exist, or is not a source of this kind.
    """
    if kind is not None and ":" in kind:
        return _plug_in(kind, path)
    if kind is not None and kind not in KINDS:
        raise SourceError(f"unknown source kind {kind!r}; expected {', '.join(KINDS)} or MODULE:CALLABLE")
    if not path:
        raise SourceError("the source's path is empty: expected a folder, a .zip, .tar or .parquet file, or a glob")
    if "://" in path:
        raise SourceError(f"{path} is not a local path: mount or download it first")
    path = os.path.abspath(os.path.expanduser(path))  # noqa: PTH100, PTH111 - may be a glob
    return KINDS[kind or _kind_of(path)](path, options)


def open_recorded(recorded: Mapping[str, Any], path: str | None = None) -> Source:
    """Open the source that a store was encoded from.

    Args:
        recorded: the result of `Source.describe`, as recorded in the store.
        path: where the source is now. None: the recorded path.

    Raises:
        SourceError: the path does not exist, or is not a source.
    """
    options = SourceOptions.from_json(recorded.get("options", {}), "source options recorded in the store")
    return open_source(path or recorded["path"], None if path else recorded.get("kind"), options)


def _kind_of(path: str) -> str:
    found = Path(path)
    if found.is_dir():
        return _kind_of_folder(found)
    for ending, kind in _ENDINGS.items():
        if path.lower().endswith(ending):
            return kind
    if not found.exists() and any(parent.is_file() and parent.suffix.lower() == ".zip" for parent in found.parents):
        return "zip"
    if found.exists():
        described = f"a {found.suffix} file" if found.suffix else "a file without a suffix"
        raise SourceError(f"{path} is {described}: expected .zip, .tar or .parquet, or a folder")
    if glob.has_magic(path):
        raise SourceError(f"{path} does not specify a file type: end the glob with .tar or .parquet")
    raise SourceError(f"{path} does not exist: expected a folder, a .zip, .tar or .parquet file, or a glob of them")


def _kind_of_folder(folder: Path) -> str:
    """Distinguish a folder of tar or parquet files from a folder of images, which contains folders or images."""
    kinds = set()
    try:
        for entry in folder.iterdir():
            if is_image(entry.name) or (entry.is_dir() and not entry.name.startswith(".")):
                return "folder"
            kinds.add(_ENDINGS.get(entry.suffix.lower()))
    except OSError as error:
        raise SourceError(f"{folder} cannot be listed: {error.strerror}") from None
    if {"tar", "parquet"} <= kinds:
        raise SourceError(
            f"{folder} contains .tar and .parquet files: specify one kind with a glob, such as {folder}/*.tar"
        )
    return next((kind for kind in ("tar", "parquet") if kind in kinds), "folder")


def _plug_in(kind: str, path: str) -> Source:
    module_name, _, name = kind.partition(":")
    try:
        make = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise SourceError(f"the source plug-in {kind} cannot be loaded: {error}") from error
    if not callable(make):
        raise SourceError(f"the source plug-in {kind} is {make!r}: expected a class or function that returns a Source")
    source = make(path)
    if not isinstance(source, Source):
        raise SourceError(
            f"the source plug-in {kind} returned {type(source).__name__}: expected a repa_pipe.sources.Source"
        )
    source.kind = kind
    return source
