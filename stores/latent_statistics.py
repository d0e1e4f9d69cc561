"""Mean and standard deviation of the latents of a shard, or of those that its moments stand for, before scaling.

Latents are samples from the posterior: their variance is the variance of its means plus the mean of its variances.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt

from ..errors import StoreError

_DIGITS = 7


class LatentsSummary(TypedDict):
    """Mean and standard deviation of unscaled latents per channel, over `images` images of a shard."""

    mean: list[float]
    std: list[float]
    images: int


class LatentStatistics:
    """Accumulates moments or latents of a shard. Rows of zeros, which belong to quarantined images, are left out."""

    def __init__(self) -> None:
        self._sums: npt.NDArray[np.float64] | float = 0.0
        self._images = 0

    def append(self, moments: npt.NDArray[Any]) -> None:
        """Add moments `[B, 2C, h, w]`.

        Raises:
            StoreError: a moment is NaN or infinite.
        """
        mean, std = np.split(_valid(moments), 2, axis=1)
        self._add(mean.mean((2, 3)), (mean**2 + std**2).mean((2, 3)), "moments")

    def append_fixed(self, latents: npt.NDArray[Any]) -> None:
        """Add latents `[B, C, h, w]`, which have no standard deviation of their own.

        Raises:
            StoreError: a latent is NaN or infinite.
        """
        valid = _valid(latents)
        self._add(valid.mean((2, 3)), (valid**2).mean((2, 3)), "latents")

    def _add(self, mean: npt.NDArray[np.float64], square: npt.NDArray[np.float64], name: str) -> None:
        """Add the means and mean squares of images, `[B, C]` each."""
        per_image = np.stack([mean, square])
        if not np.isfinite(per_image).all():
            raise StoreError(f"{name} are NaN or infinite, and were not stored")
        self._sums = self._sums + per_image.sum(1)
        self._images += len(mean)

    def summary(self) -> LatentsSummary | None:
        """Return mean and standard deviation per channel; None if no image was added."""
        if not self._images:
            return None
        mean, square = np.asarray(self._sums) / self._images
        std = np.sqrt(np.maximum(square - mean**2, 0))
        return {"mean": _rounded(mean), "std": _rounded(std), "images": self._images}


def scaled_std(summaries: Sequence[LatentsSummary], scale: Sequence[float], bias: Sequence[float]) -> float:
    """Return the standard deviation of scaled latents over all channels and all summarized images, at least one."""
    images = np.array([summary["images"] for summary in summaries])[:, None]
    weights = images / images.sum()
    mean = np.array([summary["mean"] for summary in summaries]) * scale + bias
    std = np.array([summary["std"] for summary in summaries]) * scale
    variance = (weights * (mean**2 + std**2)).sum(0).mean() - (weights * mean).sum(0).mean() ** 2
    return math.sqrt(max(variance, 0))


def _valid(values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    return values[values.any(axis=(1, 2, 3))].astype(np.float64)


def _rounded(values: npt.NDArray[np.float64]) -> list[float]:
    return [float(f"{value:.{_DIGITS}g}") for value in values]
