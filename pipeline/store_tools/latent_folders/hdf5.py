"""REPA-E's layout (github.com/End2End-Diffusion/REPA-E): moments in an HDF5 file, with the labels inside."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from ....converter import parse_json
from ....errors import ConfigError, SourceError, first_line
from .folder import Arrays, FolderOptions, LatentFolder, checked, require_grid
from .numpy_files import LABELS_FILE, labels_in_json

_IMAGES = "images.h5"  # the pictures, beside the latents


class Hdf5Folder(LatentFolder):
    """One HDF5 file of data sets `00000/img-mean-std-00000000.npy`, in the order of their names."""

    layout: ClassVar[str] = "REPA-E"
    array: Literal["moments", "latents"] = "moments"

    def __init__(self, folder: Path, options: FolderOptions) -> None:
        files = [path for path in sorted(folder.glob("*.h5")) if path.name != _IMAGES]
        if len(files) != 1:
            raise SourceError(
                f"{folder}: expected one file of latents besides {_IMAGES}, found "
                f"{', '.join(path.name for path in files) or 'none'}: put each into a folder of its own"
            )
        self._path, self._library = files[0], _h5py()
        with self._open() as file:
            names: list[str] = []
            file.visititems(lambda name, item: names.append(name) if hasattr(item, "shape") else None)
            self.keys = sorted(name for name in names if name.endswith(".npy"))
            if not self.keys or LABELS_FILE not in file:
                raise SourceError(f"{self._path}: expected data sets NAME.npy and {LABELS_FILE}, found {names[:4]}")
            stored = file[LABELS_FILE][()]
            text = stored if isinstance(stored, bytes) else np.asarray(stored).tobytes()
            values = parse_json(text.rstrip(b"\0"), f"{self._path}: {LABELS_FILE}", SourceError)
            first = file[self.keys[0]]
            self.shape, self.dtype = tuple(first.shape), first.dtype.name
        self.labels = labels_in_json(values, list(self.keys), self._path)
        require_grid(self.shape, self.dtype, self._path)
        self.statistics = next(iter(sorted(folder.glob("*latents-stats.pt"))), None)

    def _open(self) -> Any:
        try:
            return self._library.File(self._path, "r")
        except OSError as error:
            raise SourceError(f"{self._path} cannot be read ({first_line(error)}): copy it again") from error

    def read(self, rows: range) -> Arrays:
        """Read the data sets of some images."""
        with self._open() as file:
            found = []
            for key in self.keys[rows.start : rows.stop]:
                try:
                    values = file[key][()]
                except (OSError, KeyError) as error:
                    raise SourceError(f"{self._path}: {key} cannot be read ({first_line(error)})") from error
                found.append(checked(values[None], self.shape, self.dtype, f"{self._path}: {key}"))
        return {self.array: np.concatenate(found)}


def _h5py() -> Any:
    try:
        return importlib.import_module("h5py")
    except ImportError:
        raise ConfigError("HDF5 files need the package h5py: run 'pip install h5py'") from None
