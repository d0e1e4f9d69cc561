"""The files of a source that consists of one file, a folder of files, or a glob."""

import glob
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import SourceError
from .hub_card import files_by_split
from .names import RULE
from .skipped import Skipped
from .splits import Groups, group_by_split, keyword_of, select_split, split_of

_MAX_LFS_POINTER = 1024  # bytes, from its specification


@dataclass(frozen=True, slots=True)
class Files:
    """The files to read."""

    folder: str
    names: tuple[str, ...]  # relative to the folder, in the order of records
    skipped: tuple[Skipped, ...] = ()  # other files of the folder


def find_files(path: str, suffix: str, split: str | None) -> Files:
    """Find the files of a source, sorted: all of a glob, or those in a folder that belong to one split.

    Args:
        path: a file, a folder or a glob.
        suffix: the suffix of files to read, such as `.tar`.
        split: the split to read. None: the only one.

    Raises:
        SourceError: there are no files, a match is not a file, or the files belong to several splits or datasets.
    """
    names = list_files(path, suffix)
    otherwise = f"specify files with a glob, such as '*{{split}}*{suffix}'"
    if not Path(path).is_dir():
        groups = group_by_split(names, split_of) if split else _unmistakable_splits(names)
        chosen = select_split(path, groups, split, otherwise)
        _require_downloaded(folder_of(path), chosen)
        return Files(folder_of(path), tuple(chosen), _count({"of another split": names}, chosen))
    stated = files_by_split(path, suffix)
    chosen = select_split(path, stated or group_by_split(names, split_of), split, otherwise)
    if not stated:
        _require_one_folder(path, suffix, chosen)
    _require_downloaded(path, chosen)
    return Files(path, tuple(chosen), skipped_files(path, suffix, chosen))


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

    Subfolders are searched only if the folder itself contains no such files.

    Raises:
        SourceError: there are no files, or a match is not a file.
    """
    folder = folder_of(path)
    if Path(path).is_dir():
        found = _visible(path, f"*{suffix}") or _visible(path, f"**/*{suffix}")
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


def skipped_files(path: str, suffix: str, chosen: Sequence[str]) -> tuple[Skipped, ...]:
    """Return the other files in and below a folder, counted by the reason for which they are not read."""
    reasons: dict[str, list[str]] = {}
    for folder, _, names in os.walk(path):
        for name in names:
            file = os.path.relpath(f"{folder}/{name}", path)
            reasons.setdefault(_reason(file, suffix), []).append(file)
    return _count(reasons, chosen)


def _count(reasons: Mapping[str, Sequence[str]], chosen: Sequence[str]) -> tuple[Skipped, ...]:
    others = {reason: sorted(set(files).difference(chosen)) for reason, files in sorted(reasons.items())}
    return tuple(Skipped(reason, len(files), files[0]) for reason, files in others.items() if files)


def _unmistakable_splits(names: Sequence[str]) -> Groups:
    """Return the files by usual names of splits; all as one group if there is one, as a glob is a choice of files."""
    groups = group_by_split([name for name in names if keyword_of(name)], keyword_of)
    return groups if len(groups) > 1 else {None: names}


def _reason(file: str, suffix: str) -> str:
    if why := RULE.why_path_hidden(file):
        return why
    return f"not a {suffix} file" if not file.endswith(suffix) else "of another split or subfolder"


def _visible(path: str, pattern: str) -> list[str]:
    """Return the matching files of a folder, except for hidden ones and those in folders such as `.cache`."""
    files = Path(path).glob(pattern)
    return [str(file) for file in files if RULE.why_path_hidden(str(file.relative_to(path))) is None]


def _require_one_folder(path: str, suffix: str, names: Sequence[str]) -> None:
    """Refuse files in several subfolders: they may be variants of one dataset, which share images."""
    folders = sorted({os.path.dirname(name) for name in names})  # noqa: PTH120
    if len(folders) > 1:
        raise SourceError(
            f"{path} contains {suffix} files in several folders ({', '.join(folders[:5])}): specify one, such as "
            f"{path}/{folders[0]}, or all with the glob '{path}/**/*{suffix}'"
        )


def _require_downloaded(folder: str, names: Sequence[str]) -> None:
    for name in names:
        file = Path(folder, name)
        if file.stat().st_size < _MAX_LFS_POINTER and file.read_bytes().startswith(b"version https://git-lfs"):
            raise SourceError(f"{file} is a Git LFS pointer instead of the file: download it with git lfs pull")


def _explain_no_files(path: str, suffix: str) -> str:
    expected = f"expected a {suffix} file, a folder of them, or a glob such as train-*{suffix}"
    if Path(path).is_dir():
        return f"{path} contains no {suffix} files: {expected}"
    if glob.has_magic(path):
        return f"{path} matches no files: {expected}"
    return f"{path} does not exist: {expected}"
