"""Opens a source by its path and, optionally, its kind."""

import glob
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePath
from typing import Any

from ..errors import SourceError
from .arrow_files import ArrowSource
from .hub_card import states_files
from .image_folder import FolderSource
from .names import RULE, rule_of
from .options import DEFAULTS, SourceOptions
from .parquet_files import ParquetSource
from .plug_ins import open_plug_in, plug_in_names
from .saved_dataset import is_saved_dataset
from .source import Source
from .tar_shards import TarSource
from .zip_archive import ZipSource

KINDS: dict[str, Callable[[str, SourceOptions], Source]] = {
    "folder": FolderSource,
    "zip": ZipSource,
    "tar": TarSource,
    "parquet": ParquetSource,
    "arrow": ArrowSource,
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
    ".arrow": "arrow",
}
_COMMON = rule_of(1)  # uncommon images, such as a preview.gif, do not make a folder of archives a folder of images
_FILES = ".zip, .tar, .parquet or .arrow"


def open_source(path: str, kind: str | None = None, options: SourceOptions = DEFAULTS) -> Source:
    """Open a source of images. This is fast: nothing is listed yet.

    Args:
        path: a folder, an archive, a parquet or Arrow file, or a glob; see docs/sources.md.
        kind: `folder`, `zip`, `tar`, `parquet`, `arrow`, or the name of an installed plug-in. None: infer the kind from
            the path.
        options: how to read a source whose files allow several readings.

    Raises:
        SourceError: the path does not exist, is not a source of this kind, or the kind cannot apply an option.
    """
    if kind is not None and kind not in KINDS:
        _require_installed(kind)
        options.require_only(kind, path, Source.applied_options)
        return open_plug_in(kind, path)
    if not path:
        raise SourceError(f"the source's path is empty: expected a folder, a {_FILES} file, or a glob")
    if "://" in path:
        raise SourceError(f"{path} is not a local path: mount or download it first")
    path = os.path.abspath(os.path.expanduser(path))  # noqa: PTH100, PTH111 - may be a glob
    return KINDS[kind or _kind_of(path)](path, options)


def open_recorded(recorded: Mapping[str, Any], path: str | None = None, kind: str | None = None) -> Source:
    """Open the source that a store was encoded from.

    Args:
        recorded: the result of `Source.describe`, as recorded in the store.
        path: where the source is now. None: the recorded path.
        kind: see `kind_of_recorded`.

    Raises:
        SourceError: the path does not exist, is not a source, or the source needs a plug-in that `kind` does not name.
    """
    options = SourceOptions.from_json(recorded.get("options", {}), "source options recorded in the store")
    kind = kind_of_recorded(recorded, path, kind)
    return open_source(recorded["path"] if path is None else path, kind, options)


def kind_of_recorded(recorded: Mapping[str, Any], path: str | None, kind: str | None) -> str | None:
    """Return the kind with which to open a recorded source. A plug-in is code, so only `kind` starts one, not a store.

    Args:
        recorded: the result of `Source.describe`, as recorded in the store.
        path: where the source is now. None: the recorded path.
        kind: see `open_source`. None: the recorded kind if it is a built-in one; with `path`, inferred from the path.

    Raises:
        SourceError: the source needs a plug-in that `kind` does not name.
    """
    if kind is not None or path is not None:
        return kind
    found: str = recorded["kind"]
    if found not in KINDS:
        raise SourceError(
            f"{recorded['path']} was read with the source plug-in {found!r}, and a store cannot start a plug-in: "
            "pass --source-kind with the name of the installed plug-in (docs/sources.md#plug-ins)"
        )
    return found


def _require_installed(kind: str) -> None:
    names = plug_in_names()
    if kind in names:
        return
    hint = (
        "; plug-ins are installed entry points, not MODULE:CALLABLE (docs/sources.md#plug-ins)" if ":" in kind else ""
    )
    raise SourceError(
        f"unknown source kind {kind!r}; expected {', '.join(KINDS)}, or an installed plug-in "
        f"(found {', '.join(names) or 'none'}){hint}"
    )


def _kind_of(path: str) -> str:
    found = Path(path)
    if found.is_dir():
        return _kind_of_folder(found)
    for ending, kind in _ENDINGS.items():
        if path.lower().endswith(ending):
            return kind
    archive = next((parent for parent in found.parents if parent.is_file()), None)
    if archive is not None and archive.suffix.lower() in (".zip", ".tar"):
        return _ENDINGS[archive.suffix.lower()]
    if found.exists():
        described = f"a {found.suffix} file" if found.suffix else "a file without a suffix"
        raise SourceError(f"{path} is {described}: expected {_FILES}, or a folder")
    if glob.has_magic(path):
        raise SourceError(f"{path} does not specify a file type: end the glob with .tar, .parquet or .arrow")
    raise SourceError(f"{path} does not exist: expected a folder, a {_FILES} file, or a glob of them")


def _kind_of_folder(folder: Path) -> str:
    """Distinguish a folder of tar, parquet or Arrow files from a folder of images, which contains folders or images."""
    if is_saved_dataset(str(folder)):
        return "arrow"
    if states_files(str(folder), ".parquet"):
        return "parquet"
    names, has_folders = [], False
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if _COMMON.is_image(entry.name) and not RULE.why_hidden(entry.name):
                    return "folder"
                names.append(entry.name)
                has_folders |= entry.is_dir() and not RULE.why_hidden(entry.name)
    except OSError as error:
        raise SourceError(f"{folder} cannot be listed: {error.strerror}") from None
    kinds = _kinds_below(folder) if has_folders else _kinds_of(names)
    if len(kinds) > 1:
        raise SourceError(
            f"{folder} contains {' and '.join(f'.{kind}' for kind in kinds)} files: specify one kind with a glob, such "
            f"as {folder}/*.{kinds[0]}, or with --source-kind"
        )
    return kinds[0] if kinds else "folder"


def _kinds_of(names: Iterable[str]) -> list[str]:
    """Return the kinds of files with these names; `folder` alone if one is an image."""
    found = set()
    for name in names:
        if _COMMON.is_image(name) and not RULE.why_hidden(name):
            return ["folder"]
        found.add(_ENDINGS.get(PurePath(name).suffix.lower()))
    return [kind for kind in ("tar", "parquet", "arrow") if kind in found]


def _kinds_below(folder: Path) -> list[str]:
    """Return the kinds of files in the subfolders of a folder, searched until the first image."""
    found: list[str] = []
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not RULE.why_hidden(name))
        kinds = [] if parent == str(folder) else _kinds_of(names)
        if kinds == ["folder"]:
            return kinds
        found += [kind for kind in kinds if kind not in found]
    return found
