"""LightningDiT's layout (github.com/hustvl/LightningDiT, `extract_features.py`): safetensors files per rank.

Rank r of R wrote images r, r + R, r + 2R, …; a sampler padded the last row of some ranks with the first images, drawn
again, so that these rows are not copies. Latents were drawn once; flips are latents of mirrored images.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from ....errors import SourceError, first_line
from .folder import Arrays, FolderOptions, LatentFolder, checked, require_grid

_NAME = re.compile(r"latents_rank(\d+)_shard(\d+)\.safetensors")
_STATISTICS = "latents_stats.pt"
_LATENTS, _FLIPPED, _LABELS = "latents", "latents_flip", "labels"


@dataclass(frozen=True, slots=True)
class _File:
    path: Path
    start: int  # first row, counted over the files of its rank
    rows: int


class LightningDiTFolder(LatentFolder):
    """A folder of `latents_rank{RR}_shard{SSS}.safetensors`."""

    layout: ClassVar[str] = "LightningDiT"
    array: Literal["moments", "latents"] = "latents"
    has_flips = True

    def __init__(self, folder: Path, options: FolderOptions) -> None:
        self._ranks = _files_by_rank(folder)
        counts = {sum(file.rows for file in files) for files in self._ranks}
        if len(counts) > 1:
            raise SourceError(f"{folder}: expected as many rows of every rank, found {sorted(counts)}: copy it again")
        first = self._read_rows(0, range(1))[_LATENTS]
        self.shape, self.dtype = first.shape[1:], first.dtype.name
        require_grid(self.shape, self.dtype, self._ranks[0][0].path)
        labels = self._all_labels(counts.pop())
        count = _num_images(labels, len(self._ranks), options.images, folder)
        self.labels = labels[:count]
        self.keys = [f"{number:08d}" for number in range(count)]
        self.statistics = folder / _STATISTICS if (folder / _STATISTICS).is_file() else None

    def _all_labels(self, rows: int) -> npt.NDArray[np.int64]:
        """Return the labels of all rows, padding included, in the order of the images."""
        by_rank = [
            np.concatenate([_read(file.path, [_LABELS], slice(None))[_LABELS] for file in files])
            for files in self._ranks
        ]
        if any(each.shape != (rows,) or each.dtype.kind != "i" for each in by_rank):
            raise SourceError(f"{self._ranks[0][0].path.parent}: expected one integer in labels per row")
        return np.stack(by_rank, axis=1).reshape(-1).astype(np.int64)

    def read(self, rows: range) -> Arrays:
        """Read the rows of every rank among some images."""
        ranks = len(self._ranks)
        found: dict[str, list[tuple[int, npt.NDArray[Any]]]] = {_LATENTS: [], _FLIPPED: []}
        for rank in range(ranks):
            own = range(-((rank - rows.start) // ranks), -((rank - rows.stop) // ranks))
            if own:
                block = self._read_rows(rank, own)
                for name, parts in found.items():
                    parts.append((own.start * ranks + rank - rows.start, block[name]))
        arrays = [np.empty((len(rows), *self.shape), self.dtype) for _ in found]
        for array, parts in zip(arrays, found.values(), strict=True):
            for start, values in parts:
                array[start::ranks] = values
        return dict(zip(self.arrays, arrays, strict=True))

    def _read_rows(self, rank: int, rows: range) -> Arrays:
        """Return rows of one rank, which may lie in several files."""
        parts: list[Arrays] = []
        for file in self._ranks[rank]:
            part = slice(max(0, rows.start - file.start), min(file.rows, rows.stop - file.start))
            if part.start < part.stop:
                parts.append(_read(file.path, [_LATENTS, _FLIPPED], part))
                if hasattr(self, "shape"):
                    for values in parts[-1].values():
                        checked(values, self.shape, self.dtype, file.path)
        return {name: np.concatenate([part[name] for part in parts]) for name in (_LATENTS, _FLIPPED)}


def is_lightningdit(folder: Path) -> bool:
    """Return whether a folder has files of this layout."""
    return any(_NAME.fullmatch(path.name) for path in folder.iterdir())


def _files_by_rank(folder: Path) -> list[list[_File]]:
    found: dict[int, dict[int, Path]] = {}
    for path in folder.iterdir():
        if match := _NAME.fullmatch(path.name):
            found.setdefault(int(match[1]), {})[int(match[2])] = path
    if sorted(found) != list(range(len(found))):
        raise SourceError(f"{folder}: expected files of ranks 0 to {max(found)}, found ranks {sorted(found)}")
    ranks = []
    for rank, shards in sorted(found.items()):
        if sorted(shards) != list(range(len(shards))):
            raise SourceError(f"{folder}: rank {rank} has shards {sorted(shards)}: expected 0 to {max(shards)}")
        files: list[_File] = []
        for _, path in sorted(shards.items()):
            start = files[-1].start + files[-1].rows if files else 0
            files.append(_File(path, start, _num_rows(path)))
        ranks.append(files)
    return ranks


def _num_rows(path: Path) -> int:
    from ....models.weight_files import read_safetensors_shapes

    shapes = {name: each.shape for name, each in read_safetensors_shapes(path).items()}
    if not {_LATENTS, _FLIPPED, _LABELS} <= shapes.keys():
        raise SourceError(f"{path}: expected {_LATENTS}, {_FLIPPED} and {_LABELS}, found {', '.join(sorted(shapes))}")
    rows = {name: shapes[name][0] if shapes[name] else 0 for name in (_LATENTS, _FLIPPED, _LABELS)}
    if len(set(rows.values())) > 1:
        raise SourceError(f"{path}: expected as many rows of each tensor, found {rows}")
    return int(rows[_LABELS])


def _read(path: Path, names: list[str], rows: slice) -> Arrays:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_slice(name)[rows] for name in names}
    except (SafetensorError, OSError, TypeError) as error:
        raise SourceError(f"{path} cannot be read ({first_line(error)}): restore it from a copy") from error


def _num_images(labels: npt.NDArray[np.int64], ranks: int, stated: int | None, folder: Path) -> int:
    """Return the number of images: as stated, else where labels, which are in class order, begin again.

    Raises:
        SourceError: the labels contradict the number, or do not show it.
    """
    falls = np.flatnonzero(np.diff(labels) < 0)
    if stated is None and ranks > 1 and labels.min() == labels.max():
        raise SourceError(
            f"{folder}: all images have the same label, so padding cannot be distinguished from images: pass --images, "
            "the number of images that were encoded"
        )
    count = stated or (int(falls[0]) + 1 if len(falls) else len(labels))
    if not len(labels) - ranks < count <= len(labels):
        raise SourceError(
            f"{folder}: {ranks} ranks with {len(labels):,} rows in all hold {len(labels) - ranks + 1:,} to "
            f"{len(labels):,} images, {'--images is' if stated else 'labels in class order end after'} {count:,}"
        )
    if (np.diff(labels[:count]) < 0).any() or (labels[count:] != labels[: len(labels) - count]).any():
        raise SourceError(
            f"{folder}: expected the labels of {count:,} images in class order, then those of the first "
            f"{len(labels) - count} again: pass the --images that were encoded, or copy the folder again"
        )
    return count
