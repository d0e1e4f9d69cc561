"""The files of a source that consists of one file, a folder of files, or a glob."""

import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path

from ..errors import SourceError

_SPLIT = re.compile(r"(?:^|[^a-z])(train|val|valid|validation|test)(?:[^a-z]|$)")


def folder_of(path: str) -> str:
    """Return the folder to which file names are relative; for a glob, its longest parent without wildcards."""
    if Path(path).is_dir():
        return path
    folder = os.path.dirname(path)  # noqa: PTH120 - globs are strings
    while glob.has_magic(folder) and not Path(folder).exists():
        folder = os.path.dirname(folder)  # noqa: PTH120
    return folder


def list_files(path: str, suffix: str) -> list[str]:
    """Return the sorted files of a source, relative to `folder_of(path)`.

    Raises:
        SourceError: there are no files, or a match is not a file.
    """
    folder = folder_of(path)
    if Path(path).is_dir():
        found = [str(file) for file in Path(path).glob(f"*{suffix}")]
    elif Path(path).exists():
        found = [path]
    else:
        found = glob.glob(path, recursive=True)  # noqa: PTH207 - an absolute pattern
    if not found:
        raise SourceError(_explain_no_files(path, suffix))
    wrong = [file for file in found if not Path(file).is_file()]
    if wrong:
        raise SourceError(f"{wrong[0]} is not a file: expected {suffix} files only")
    return sorted(os.path.relpath(file, folder) for file in found)


def check_one_split(path: str, files: Sequence[str]) -> None:
    """Raise SourceError if files belong to several splits: published datasets often keep them in one folder."""
    first = {match[1]: file for file in reversed(files) if (match := _SPLIT.search(file.lower()))}
    if len(first) > 1:
        example = f"*{min(first)}*{Path(files[0]).suffix}"
        found = ", ".join(sorted(first.values()))
        raise SourceError(f"{path} contains several splits ({found}): specify one with a glob, such as {example}")


def _explain_no_files(path: str, suffix: str) -> str:
    expected = f"expected a {suffix} file, a folder of them, or a glob such as train-*{suffix}"
    if Path(path).is_dir():
        return f"{path} contains no {suffix} files: {expected}"
    if glob.has_magic(path):
        return f"{path} matches no files: {expected}"
    return f"{path} does not exist: {expected}"
