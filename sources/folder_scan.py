"""Lists folders of images: names and sizes of images, and counts of everything else."""

import os
import stat
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from operator import attrgetter
from typing import TypeAlias

from ..errors import SourceError
from .names import RULE, ListingRule
from .skipped import SkipCounter, count_files_below

LISTING_THREADS = 32  # network file systems take milliseconds per request but serve many at once
_LARGE = 1024  # files of a folder

_Inode: TypeAlias = tuple[int, int]  # device and inode number


@dataclass(frozen=True, slots=True)
class Files:
    """Images of a folder, as pairs of key and bytes, and what else is in it."""

    images: list[tuple[str, int]] = field(default_factory=list)
    skipped: SkipCounter = field(default_factory=SkipCounter)


def scan(folder: str) -> list[os.DirEntry[str]]:
    """Return the entries of a folder, sorted by name.

    Raises:
        SourceError: the folder cannot be listed.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=attrgetter("name"))
    except OSError as error:
        raise SourceError(f"{folder} cannot be listed: {error.strerror}") from None


def files_below(root: str, rule: ListingRule, top: str) -> Files:
    """Return the files in and below a folder, in the order of `sorted(os.walk(…))`.

    Args:
        root: the folder to which keys are relative.
        rule: which files are images.
        top: the folder, relative to `root`.

    Raises:
        SourceError: a folder cannot be listed, or a link leads nowhere or to a folder around it.
    """
    by_folder: dict[str, Files] = {}
    waiting: list[tuple[str, frozenset[_Inode]]] = [(top, frozenset())]
    while waiting:
        folder, above = waiting.pop()
        path = f"{root}/{folder}"
        inside = above | {_inode(path)}
        if inside == above:
            raise SourceError(f"{path} links to a folder that contains it: remove the link")
        by_folder[folder] = Files()
        below = add_entries(by_folder[folder], scan(path), rule, f"{folder}/")
        waiting += [(name, inside) for name in below]
    result = Files()
    for folder in sorted(by_folder):
        result.images.extend(by_folder[folder].images)
        result.skipped.merge(by_folder[folder].skipped)
    return result


def add_entries(files: Files, entries: Iterable[os.DirEntry[str]], rule: ListingRule, prefix: str) -> list[str]:
    """Add the files among the entries of a folder; return the keys of the folders in it.

    Args:
        files: receives images and counts.
        entries: the entries, sorted.
        rule: which files are images.
        prefix: key of the folder with a slash, or an empty string.
    """
    folders, images = [], []
    for entry in entries:
        name = entry.name
        if why := rule.why_hidden(name):
            _skip_hidden(files.skipped, entry, prefix + name, why)
        elif entry.is_dir():
            folders.append(prefix + name)
        elif rule.is_image(name):
            images.append(entry)
        else:
            if rule is RULE and entry.is_symlink():  # may have been meant as a folder, which would shift all labels
                _stat(entry)
            files.skipped.add(rule.why_not_image(name), prefix + name)
    files.images.extend(zip((prefix + entry.name for entry in images), _sizes(images), strict=True))
    return folders


def _skip_hidden(skipped: SkipCounter, entry: os.DirEntry[str], key: str, why: str) -> None:
    if entry.is_dir(follow_symlinks=False):
        skipped.add(why, f"{key}/", count_files_below(entry.path))
    else:
        skipped.add(why, key)


def _inode(path: str) -> _Inode:
    found = os.stat(path)  # noqa: PTH116 - paths are strings here
    return found.st_dev, found.st_ino


def _sizes(entries: list[os.DirEntry[str]]) -> list[int]:
    """Return the bytes of files. Those of a large folder are asked for in parallel."""
    if len(entries) <= _LARGE:
        return list(map(_size, entries))
    parts = [entries[start : start + _LARGE] for start in range(0, len(entries), _LARGE)]
    with ThreadPoolExecutor(LISTING_THREADS) as pool:
        return list(chain.from_iterable(pool.map(lambda part: list(map(_size, part)), parts)))


def _size(entry: os.DirEntry[str]) -> int:
    found = _stat(entry)
    if not stat.S_ISREG(found.st_mode):
        raise SourceError(f"{entry.path} is not a regular file: remove it")
    return found.st_size


def _stat(entry: os.DirEntry[str]) -> os.stat_result:
    try:
        return entry.stat()
    except OSError as error:
        raise SourceError(f"{entry.path} cannot be read: {error.strerror}; fix or remove it") from None
