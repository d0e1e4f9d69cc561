"""A folder of images: one folder per class, as in torchvision's `ImageFolder`, or a flat folder."""

import os
import stat
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeAlias

from ..errors import SourceError
from .index import Record, build_index, names_of_labels
from .options import DEFAULTS, SourceOptions
from .source import Listing, Progress, Source
from .tree import FLAT_CLASS, LABELS_FILE, check_classes, is_image, labels_from_json, some

_LISTING_THREADS = 32  # network file systems take milliseconds per request but serve many at once

_Sized: TypeAlias = tuple[str, int]  # key and bytes of a file
_Inode: TypeAlias = tuple[int, int]  # device and inode number


class FolderSource(Source):
    """A folder `PATH/CLASS/…/IMAGE`.

    Keys are paths relative to PATH. Labels are the positions of the class folders in sorted order. Order and classes
    are those of `torchvision.datasets.ImageFolder`; links are followed. A folder that contains images but no folders is
    a single class. If there is a `dataset.json` as written by REPA's tools, it provides the labels instead.
    """

    kind = "folder"
    applied_options = frozenset({"split"})

    def __init__(self, path: str, options: SourceOptions = DEFAULTS) -> None:
        super().__init__(path, options)
        if not Path(path).is_dir():
            found = "is a file" if Path(path).exists() else "does not exist"
            raise SourceError(f"{path} {found}: expected a folder with one folder of images per class")
        if options.split is not None:
            self.path = _folder_of_split(path, options.split)

    def list_records(self, progress: Progress | None) -> Listing:
        """List the images of each class in a thread pool."""
        folders = sorted(entry.name for entry in _scan(self.path) if entry.is_dir())
        tops = folders or [""]
        found: list[list[_Sized]] = []
        with ThreadPoolExecutor(_LISTING_THREADS) as pool:
            for files in pool.map(partial(_images_below, self.path), tops):
                found.append(files)
                if progress is not None:
                    progress(len(found), len(tops))
        keys = [key for files in found for key, _ in files]
        if not keys:
            raise SourceError(_explain_no_images(self.path))
        check_classes(self.path, folders, keys)
        labels = self._labels_from_json(keys)
        class_of = [label for label, files in enumerate(found) for _ in files] if labels is None else labels
        sizes = [size for files in found for _, size in files]
        index = build_index(map(Record, keys, class_of, sizes, keys))
        if labels is not None:
            return Listing(index, names_of_labels(index))
        return Listing(index, tuple(folders) or (FLAT_CLASS,))

    def read_bytes(self, record: Record) -> bytes:
        """Read one file."""
        try:
            with open(f"{self.path}/{record.locator}", "rb") as file:  # noqa: PTH123 - Path is 5% slower here
                return file.read()
        except OSError as error:
            raise SourceError(f"{self.path}/{record.locator} cannot be read: {error.strerror}") from None

    def _labels_from_json(self, keys: list[str]) -> list[int] | None:
        file = Path(self.path, LABELS_FILE)
        return labels_from_json(str(file), file.read_bytes(), keys) if file.is_file() else None


def _folder_of_split(path: str, split: str) -> str:
    folders = sorted(entry.name for entry in _scan(path) if entry.is_dir())
    if split not in folders:
        raise SourceError(f"{path} has no split {split}: expected one of its folders ({some(folders)})")
    return f"{path}/{split}"


def _scan(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise SourceError(f"{folder} cannot be listed: {error.strerror}") from None


def _images_below(root: str, top: str) -> list[_Sized]:
    """Return the images in and below a class folder, in the order of `sorted(os.walk(…))`."""
    by_folder: dict[str, list[_Sized]] = {}
    waiting: list[tuple[str, frozenset[_Inode]]] = [(top, frozenset())]
    while waiting:
        folder, above = waiting.pop()
        path = f"{root}/{folder}" if folder else root
        prefix = f"{folder}/" if folder else ""
        inside = above | {_inode(path)}
        if inside == above:
            raise SourceError(f"{path} links to a folder that contains it: remove the link")
        files = by_folder[folder] = []
        for entry in sorted(_scan(path), key=lambda entry: entry.name):
            if entry.is_dir():
                waiting.append((prefix + entry.name, inside))
            elif is_image(entry.name):
                files.append((prefix + entry.name, _size(entry)))
    return [file for folder in sorted(by_folder) for file in by_folder[folder]]


def _inode(path: str) -> _Inode:
    found = os.stat(path)  # noqa: PTH116 - paths are strings here
    return found.st_dev, found.st_ino


def _size(entry: os.DirEntry[str]) -> int:
    try:
        found = entry.stat()
    except OSError as error:
        raise SourceError(f"{entry.path} cannot be read: {error.strerror}; fix or remove it") from None
    if not stat.S_ISREG(found.st_mode):
        raise SourceError(f"{entry.path} is not a regular file: remove it")
    return found.st_size


def _explain_no_images(path: str) -> str:
    """Return a message with the most common file suffix in a folder without images."""
    others: Counter[str] = Counter()
    for _, _, names in os.walk(path):
        others.update(Path(name).suffix.lower() or name for name in names)
        if others.total() > 1000:
            break
    if not others:
        return f"{path} is empty: expected one folder of images per class"
    suffix, count = others.most_common(1)[0]
    return f"{path} contains no images but {count} {suffix} files: expected one folder of images per class"
