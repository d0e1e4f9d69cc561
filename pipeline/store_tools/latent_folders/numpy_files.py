"""Folders of .npy files, one array per image, and of .npz files, with arrays of one or several images by key.

Labels are those of the key `--label-key`; else of `dataset.json`, as REPA and REPA-E write it; else folders' names.
"""

from __future__ import annotations

import zipfile
from bisect import bisect_right
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from ....converter import read_json, structure
from ....errors import SourceError, first_line
from ....stores.layout import FLIPPED
from .folder import Arrays, FolderOptions, LatentFolder, checked, require_grid

LABELS_FILE = "dataset.json"
_MAX_LABELS_BYTES = 2 << 30
_MEAN_AND_STD = "img-mean-std-"  # REPA's files of moments


class NpyFolder(LatentFolder):
    """One .npy file per image, at any depth, in the order of their paths."""

    layout: ClassVar[str] = "npy"

    def __init__(self, folder: Path, options: FolderOptions) -> None:
        self._files = sorted(folder.rglob("*.npy"), key=lambda path: str(path.relative_to(folder)))
        self.keys = [str(path.relative_to(folder)) for path in self._files]
        self._names, self.labels = _labels_of(folder, self.keys)
        is_repa = self._files[0].name.startswith(_MEAN_AND_STD)
        self.array = "moments" if options.moments or is_repa else "latents"
        first = _load(self._files[0])
        self.shape, self.dtype = first.shape, first.dtype.name
        require_grid(self.shape, self.dtype, self._files[0])
        self.statistics = next(iter(sorted(folder.glob("*latents-stats.pt"))), None)

    def class_names(self) -> tuple[str, ...]:
        """Return the names of the folders, or numbers."""
        return self._names or super().class_names()

    def read(self, rows: range) -> Arrays:
        """Read files in parallel."""

        def one(path: Path) -> npt.NDArray[Any]:
            return checked(_load(path)[None], self.shape, self.dtype, path)

        with ThreadPoolExecutor() as pool:
            return {self.array: np.concatenate(list(pool.map(one, self._files[rows.start : rows.stop])))}


class NpzFolder(LatentFolder):
    """Files .npz in the order of their paths, each with arrays `[n, C, h, w]`, or `[C, h, w]` of one image."""

    layout: ClassVar[str] = "npz"

    def __init__(self, folder: Path, options: FolderOptions) -> None:
        self._files = sorted(folder.rglob("*.npz"), key=lambda path: str(path.relative_to(folder)))
        if options.latents_key is None:
            keys = ", ".join(sorted(_open(self._files[0])))
            raise SourceError(f"{self._files[0]} holds {keys}: pass --latents-key, the key of the latents")
        self._keys = [options.latents_key, *([options.flipped_key] if options.flipped_key else [])]
        self.has_flips = options.flipped_key is not None
        self.array = "moments" if options.moments else "latents"
        blocks = [self._block(path, self._keys[0]) for path in self._files[:1]]
        self.shape, self.dtype = blocks[0].shape[1:], blocks[0].dtype.name
        require_grid(self.shape, self.dtype, self._files[0])
        self._ends = list(accumulate(len(self._block(path, self._keys[0])) for path in self._files))
        names = [str(path.relative_to(folder)) for path in self._files]
        counts = np.diff([0, *self._ends])
        self.keys = [f"{name}[{row}]" for name, count in zip(names, counts, strict=True) for row in range(count)]
        self._names, self.labels = self._labels(folder, names, counts, options.label_key)
        self.statistics = next(iter(sorted(folder.glob("*latents-stats.pt"))), None)

    def _labels(
        self, folder: Path, names: list[str], counts: npt.NDArray[Any], key: str | None
    ) -> tuple[tuple[str, ...] | None, npt.NDArray[np.int64]]:
        if key is None:
            classes, labels = _labels_of(folder, names)
            return classes, np.repeat(labels, counts)
        found = []
        for path, count in zip(self._files, counts, strict=True):
            labels = np.atleast_1d(_member(path, key))
            if labels.shape != (count,) or labels.dtype.kind not in "iu":
                raise SourceError(f"{path}: {key}: expected {count} integers, found {labels.dtype} {labels.shape}")
            found.append(labels.astype(np.int64))
        return None, np.concatenate(found)

    def class_names(self) -> tuple[str, ...]:
        """Return the names of the folders, or numbers."""
        return self._names or super().class_names()

    def _block(self, path: Path, key: str) -> npt.NDArray[Any]:
        values = _member(path, key)
        return values[None] if values.ndim == 3 else values

    def read(self, rows: range) -> Arrays:
        """Read the files that hold some images."""
        first, last = (bisect_right(self._ends, row) for row in (rows.start, rows.stop - 1))
        start = self._ends[first - 1] if first else 0
        arrays = {}
        for name, key in zip([self.array, self.array + FLIPPED], self._keys, strict=False):
            blocks = [
                checked(self._block(path, key), self.shape, self.dtype, f"{path}: {key}")
                for path in self._files[first : last + 1]
            ]
            arrays[name] = np.concatenate(blocks)[rows.start - start : rows.stop - start]
        return arrays


def _labels_of(folder: Path, keys: list[str]) -> tuple[tuple[str, ...] | None, npt.NDArray[np.int64]]:
    """Return names of classes, if folders have them, and the label of each file."""
    if (folder / LABELS_FILE).is_file():
        return None, labels_in_json(read_json(folder / LABELS_FILE, SourceError, _MAX_LABELS_BYTES), keys, folder)
    parents = [str(Path(key).parent) for key in keys]
    if "." in parents:
        raise SourceError(
            f"{folder}: no labels: expected {LABELS_FILE} with [name, class] pairs under 'labels', or one folder per "
            "class"
        )
    names = sorted(set(parents))
    numbers = {name: number for number, name in enumerate(names)}
    return tuple(names), np.array([numbers[parent] for parent in parents], np.int64)


def labels_in_json(values: Any, keys: list[str], where: object) -> npt.NDArray[np.int64]:
    """Return the labels of files in a `dataset.json`, which are paired with them by name.

    Raises:
        SourceError: a file has none.
    """
    pairs = structure(
        {"labels": values.get("labels")}, dict[str, list[tuple[str, int]]], f"{where}: {LABELS_FILE}", SourceError
    )
    labels = dict(pairs["labels"])
    missing = next((key for key in keys if key not in labels), None)
    if missing is not None:
        raise SourceError(f"{where}: {LABELS_FILE} has no label of {missing}")
    return np.array([labels[key] for key in keys], np.int64)


def _load(path: Path) -> npt.NDArray[Any]:
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise SourceError(f"{path} cannot be read ({first_line(error)}): restore it from a copy") from error
    if not isinstance(values, np.ndarray):
        raise SourceError(f"{path}: expected one array")
    return values


def _open(path: Path) -> Any:
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise SourceError(f"{path} cannot be read ({first_line(error)}): restore it from a copy") from error
    if isinstance(values, np.ndarray):
        raise SourceError(f"{path}: expected arrays by key")
    return values


def _member(path: Path, key: str) -> npt.NDArray[Any]:
    with _open(path) as file:
        if key not in file:
            raise SourceError(f"{path}: expected an array {key}, found {', '.join(sorted(file))}")
        try:
            values: npt.NDArray[Any] = file[key]
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise SourceError(f"{path}: {key} cannot be read ({first_line(error)}): restore it from a copy") from error
    return values
