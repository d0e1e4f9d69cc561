"""Mean and covariance of features: accumulated in batches, or loaded from statistics files."""

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigError
from .arrays import Array, as_features

BLOCK = 2048  # rows converted to float64 at a time


@dataclass(frozen=True, slots=True)
class Gaussian:
    """The statistics of a set of features that a Fréchet distance is computed from.

    `count` is None if a statistics file does not record the number of images.
    """

    mean: Tensor  # [D] float64
    covariance: Tensor  # [D, D] float64, divided by count - 1
    count: int | None


class FeatureStatistics:
    """Float64 mean and covariance of features, accumulated in batches.

    Batches are combined with the update of Chan, Golub and LeVeque (1979) for means and scatter matrices, which keeps
    its precision if the mean is large compared with the spread. Order and size of the batches change the result only by
    rounding. Memory: one [D, D] float64 matrix and two blocks of 2,048 rows.
    """

    def __init__(self, width: int, device: torch.device | str = "cpu") -> None:
        self.count = 0
        self._mean = torch.zeros(width, dtype=torch.float64, device=device)
        self._scatter = torch.zeros(width, width, dtype=torch.float64, device=device)

    @property
    def width(self) -> int:
        """Width D of the features."""
        return len(self._mean)

    @property
    def mean(self) -> Tensor:
        """Mean [D] float64."""
        return self._mean.clone()

    @property
    def covariance(self) -> Tensor:
        """Covariance [D, D] float64, with Bessel's correction as in `numpy.cov`.

        Raises:
            ConfigError: fewer than two images have been added.
        """
        if self.count < 2:
            raise ConfigError(f"a covariance needs at least 2 images, found {self.count}")
        return self._scatter / (self.count - 1)

    def update(self, features: Array) -> None:
        """Add features [B, D] of any floating dtype.

        Raises:
            ConfigError: the features have another width, or some are not finite.
        """
        features = as_features(features, "features")
        if features.shape[1] != self.width:
            raise ConfigError(
                f"features of width {features.shape[1]} added to statistics of width {self.width}; "
                "both must come from the same detector"
            )
        for block in torch.split(features, BLOCK):
            rows = block.to(self._mean)
            mean = rows.mean(0)
            self._combine(len(rows), mean, _gram(rows - mean))

    def gaussian(self) -> Gaussian:
        """Return the statistics so far, on this object's device; raises ConfigError for fewer than two images."""
        return Gaussian(self.mean, self.covariance, self.count)

    def _combine(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        total = self.count + count
        step = mean - self._mean
        self._scatter += scatter
        self._scatter.addr_(step, step, alpha=self.count * count / total)
        self._mean += step * (count / total)
        self.count = total


def _gram(rows: Tensor) -> Tensor:
    """Return `rows.T @ rows` [D, D]."""
    if rows.device.type == "cpu":  # numpy exploits the symmetry of the product, at half the work
        return torch.from_numpy(rows.numpy().T @ rows.numpy())
    return rows.T @ rows


def load_statistics(path: str | Path) -> tuple[Gaussian, Gaussian | None]:
    """Read an .npz file of statistics: ADM's reference batches and statistics files, TTUR's or pytorch-fid's.

    Args:
        path: a file with the arrays `mu` and `sigma`, and optionally `mu_s`, `sigma_s` and `count`.

    Returns:
        Pooled and spatial statistics in float64; None for the latter if the file has none.

    Raises:
        ConfigError: the file is missing or is not an .npz file, or the arrays are not a mean and a covariance.
    """
    try:
        with Path(path).open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            is_archive = isinstance(archive, np.lib.npyio.NpzFile)
            names = list(archive.files) if is_archive else []
            arrays = {name: archive[name] for name in ("mu", "sigma", "mu_s", "sigma_s", "count") if name in names}
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist; expected an .npz file with the arrays mu and sigma") from None
    except (OSError, ValueError, EOFError, MemoryError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise ConfigError(f"{path} is not an .npz file, or is damaged ({error}). Download or create it again") from None
    if "mu" not in arrays or "sigma" not in arrays:
        found = ", ".join(names) if is_archive else "a single array"
        raise ConfigError(f"{path} holds {found}; expected an .npz file with the arrays mu and sigma")
    count = _count(path, arrays["count"]) if "count" in arrays else None
    pooled = _gaussian(path, arrays, "", count)
    spatial = _gaussian(path, arrays, "_s", count) if "mu_s" in arrays and "sigma_s" in arrays else None
    return pooled, spatial


def _count(path: str | Path, array: Any) -> int:
    if array.size != 1 or array.dtype.kind not in "iu" or array.item() < 2:
        raise ConfigError(f"{path}: count is {array.tolist()!r}; expected the number of images, at least 2")
    return int(array.item())


def _gaussian(path: str | Path, arrays: dict[str, Any], suffix: str, count: int | None) -> Gaussian:
    mean, covariance = arrays[f"mu{suffix}"], arrays[f"sigma{suffix}"]
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise ConfigError(
            f"{path}: mu{suffix} has shape {list(mean.shape)} and sigma{suffix} {list(covariance.shape)}; "
            "expected [D] and [D, D]"
        )
    for name, array in ((f"mu{suffix}", mean), (f"sigma{suffix}", covariance)):
        if array.dtype.kind not in "fiu" or not np.isfinite(array).all():
            raise ConfigError(f"{path}: {name} is {array.dtype}, or not finite; expected finite numbers")
    asymmetry = np.abs(covariance - covariance.T).max(initial=0)
    if (np.diagonal(covariance) < 0).any() or asymmetry > 1e-3 * np.abs(covariance).max(initial=0):
        raise ConfigError(
            f"{path}: sigma{suffix} is not a covariance: expected a symmetric matrix, variances of 0 or more"
        )
    return Gaussian(torch.from_numpy(mean.astype(np.float64)), torch.from_numpy(covariance.astype(np.float64)), count)
