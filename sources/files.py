"""The files of a source that comes in several: one file, a folder of them, or a glob."""

import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path

from ..errors import SourceError

_SPLIT = re.compile(r"(?:^|[^a-z])(train|val|valid|validation|test)(?:[^a-z]|$)")


def folder_of(path: str) -> str:
    """Give the folder that file names are told relative to: the one that stays the same whatever a glob finds."""
    if Path(path).is_dir():
        return path
    folder = os.path.dirname(path)  # noqa: PTH120 - globs are strings
    while glob.has_magic(folder) and not Path(folder).exists():
        folder = os.path.dirname(folder)  # noqa: PTH120
    return folder


def list_files(path: str, suffix: str) -> list[str]:
    """List the files of a source, sorted, relative to `folder_of(path)`.

    Raises SourceError where there is none, or one isn't a file.
    """
    folder = folder_of(path)
    if Path(path).is_dir():
        found = [str(file) for file in Path(path).glob(f"*{suffix}")]
    elif Path(path).exists():
        found = [path]
    else:
        found = glob.glob(path, recursive=True)  # noqa: PTH207 - an absolute pattern
    if not found:
        raise SourceError(_nothing(path, suffix))
    wrong = [file for file in found if not Path(file).is_file()]
    if wrong:
        raise SourceError(f"{wrong[0]} is not a file: expected {suffix} files only")
    return sorted(os.path.relpath(file, folder) for file in found)


def check_one_split(path: str, files: Sequence[str]) -> None:
    """Refuse a mixture of splits: published sets often keep train and validation files in one folder."""
    first = {match[1]: file for file in reversed(files) if (match := _SPLIT.search(file.lower()))}
    if len(first) > 1:
        example = f"*{min(first)}*{Path(files[0]).suffix}"
        found = ", ".join(sorted(first.values()))
        raise SourceError(f"{path} holds several splits ({found}): name one with a glob, such as {example}")


def _nothing(path: str, suffix: str) -> str:
    expected = f"expected a {suffix} file, a folder of them, or a glob such as train-*{suffix}"
    if Path(path).is_dir():
        return f"{path} holds no {suffix} files: {expected}"
    if glob.has_magic(path):
        return f"{path} matches no file: {expected}"
    return f"{path} does not exist: {expected}"
