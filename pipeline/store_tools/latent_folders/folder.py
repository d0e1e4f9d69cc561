"""The interface of a layout of latents."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from ....errors import SourceError
from ....stores.layout import FLIPPED

Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderOptions:
    """What a user states about a folder; None for what it says itself."""

    images: int | None = None  # number of images
    latents_key: str | None = None
    flipped_key: str | None = None
    label_key: str | None = None
    moments: bool = False  # the arrays are means, then standard deviations
    shape: tuple[int, int, int] | None = None  # of arrays that are stored as bytes
    dtype: str | None = None


class LatentFolder(ABC):
    """Latents of images, in the order of the images.

    Attributes:
        labels: `[N]` int64.
        keys: a name per image.
        array: whether they are moments or fixed latents.
        shape: of an image's array, `[C, h, w]`, or `[2C, h, w]` of moments.
        dtype: numpy's name.
        statistics: a file of statistics beside them, if any.
    """

    layout: ClassVar[str]
    labels: npt.NDArray[np.int64]
    keys: Sequence[str]
    array: Literal["moments", "latents"]
    shape: tuple[int, ...]
    dtype: str
    has_flips: bool = False
    statistics: Path | None = None

    @abstractmethod
    def read(self, rows: range) -> Arrays:
        """Return the arrays of some images, `[B, *shape]`, under `array` and, with flips, `array` + `_flipped`.

        Raises:
            SourceError: a file is damaged, or has another shape or dtype than the first one.
        """

    @property
    def arrays(self) -> list[str]:
        """Names of the arrays that `read` returns."""
        return [self.array, *([self.array + FLIPPED] if self.has_flips else [])]

    def class_names(self) -> tuple[str, ...]:
        """Return the names of the classes: numbers, unless the layout has names."""
        return tuple(map(str, range(int(self.labels.max()) + 1)))


def checked(values: npt.NDArray[Any], shape: tuple[int, ...], dtype: str, where: object) -> npt.NDArray[Any]:
    """Return rows `[B, …]`; SourceError if they have another shape or dtype, or are not finite."""
    if values.shape[1:] != shape or values.dtype.name != dtype:
        raise SourceError(
            f"{where}: expected {dtype} {list(shape)} per image, as in the first one, found {values.dtype} "
            f"{list(values.shape[1:])}"
        )
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise SourceError(f"{where}: latents are NaN or infinite: compute them again, in float32")
    return values


def require_grid(shape: tuple[int, ...], dtype: str, where: object) -> None:
    """Raise SourceError unless arrays are a square grid of numbers that a store holds."""
    if len(shape) != 3 or shape[1] != shape[2]:
        raise SourceError(f"{where}: expected latents [channels, h, h] per image, found {list(shape)}")
    if dtype not in {"float32", "float16"}:
        raise SourceError(f"{where}: expected float32 or float16, found {dtype}")
