"""Mean and covariance of features: accumulated while images pass by, saved, loaded."""

import os
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

BLOCK = 2048  # rows that are turned into float64 at a time


@dataclass(frozen=True, slots=True)
class Gaussian:
    """What a Fréchet distance needs to know of a set of features.

    `count` is None where a statistics file does not say how many images it was made from.
    """

    mean: Tensor  # [D] float64
    covariance: Tensor  # [D, D] float64, divided by count - 1
    count: int | None


class FeatureStatistics:
    """Mean and covariance of features that arrive in batches, in float64.

    Batches are joined by the update of Chan, Golub and LeVeque (1979) for means and scatter matrices, so nothing
    is lost where the mean is large against the spread. The order of the batches, or their sizes, change the
    result by rounding only. Memory: one [D, D] float64 matrix and two blocks of 2,048 rows.
    """

    def __init__(self, width: int, device: torch.device | str = "cpu") -> None:
        self.count = 0
        self._mean = torch.zeros(width, dtype=torch.float64, device=device)
        self._scatter = torch.zeros(width, width, dtype=torch.float64, device=device)

    @property
    def width(self) -> int:
        """Numbers in one image's features."""
        return len(self._mean)

    @property
    def mean(self) -> Tensor:
        """Mean feature, [D] float64."""
        return self._mean.clone()

    @property
    def covariance(self) -> Tensor:
        """Covariance, [D, D] float64, with Bessel's correction as in `numpy.cov`.

        Raises ConfigError when fewer than two images have been seen.
        """
        if self.count < 2:
            raise ConfigError(f"a covariance of {self.count} image(s): at least 2 are needed")
        return self._scatter / (self.count - 1)

    def update(self, features: Array) -> None:
        """Add features [B, D] of any float type.

        Raises ConfigError when their width is another one, or when some are not finite.
        """
        features = as_features(features, "features")
        self._check_width(features.shape[1])
        for block in torch.split(features, BLOCK):
            rows = block.to(self._mean)
            mean = rows.mean(0)
            self._join(len(rows), mean, _gram(rows - mean))

    def merge(self, other: "FeatureStatistics") -> None:
        """Add everything that `other` has seen, for instance on another device or in another process."""
        self._check_width(other.width)
        if other.count:
            self._join(other.count, other._mean.to(self._mean), other._scatter.to(self._scatter))

    def gaussian(self) -> Gaussian:
        """The statistics so far, on this object's device. Raises ConfigError below two images."""
        return Gaussian(self.mean, self.covariance, self.count)

    def _check_width(self, width: int) -> None:
        if width != self.width:
            raise ConfigError(
                f"features of width {width} added to statistics of width {self.width}: "
                "both must come from the same detector"
            )

    def _join(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        total = self.count + count
        step = mean - self._mean
        self._scatter += scatter
        self._scatter.addr_(step, step, alpha=self.count * count / total)
        self._mean += step * (count / total)
        self.count = total


def _gram(rows: Tensor) -> Tensor:
    """`rows.T @ rows`, [D, D]."""
    if rows.device.type == "cpu":  # numpy knows that the product is symmetric, and does half the work
        return torch.from_numpy(rows.numpy().T @ rows.numpy())
    return rows.T @ rows


def save_statistics(path: str | Path, pooled: Gaussian, spatial: Gaussian | None = None) -> None:
    """Write a statistics file as the ADM evaluation suite reads it.

    Its arrays are `mu` [D], `sigma` [D, D] and, where spatial features are given, `mu_s` and `sigma_s`, all
    float64; `count` says how many images there were. The file appears complete or not at all.
    """
    arrays: dict[str, Any] = {"mu": pooled.mean.cpu().numpy(), "sigma": pooled.covariance.cpu().numpy()}
    if spatial is not None:
        arrays |= {"mu_s": spatial.mean.cpu().numpy(), "sigma_s": spatial.covariance.cpu().numpy()}
    if pooled.count is not None:
        arrays["count"] = np.array(pooled.count)
    path = Path(path)
    unfinished = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        with unfinished.open("wb") as file:
            np.savez(file, **arrays)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def load_statistics(path: str | Path) -> tuple[Gaussian, Gaussian | None]:
    """Read `mu`, `sigma` and, where they are there, `mu_s` and `sigma_s` from an .npz file.

    Reads ADM's reference batches, its statistics files, those of TTUR and pytorch-fid, and ours. Returns pooled and
    spatial statistics (None: the file has none) in float64.

    Raises ConfigError when the file is missing, is no .npz, or its arrays are not a mean and a covariance.
    """
    try:
        with Path(path).open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            is_archive = isinstance(archive, np.lib.npyio.NpzFile)
            names = list(archive.files) if is_archive else []
            arrays = {name: archive[name] for name in ("mu", "sigma", "mu_s", "sigma_s", "count") if name in names}
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; give an .npz with the arrays mu and sigma") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ConfigError(f"{path}: no .npz file, or a damaged one ({error}); get or make it again") from None
    if "mu" not in arrays or "sigma" not in arrays:
        found = ", ".join(names) if is_archive else "a single array"
        raise ConfigError(f"{path}: holds {found}, but statistics are an .npz file with the arrays mu and sigma")
    count = int(arrays["count"]) if "count" in arrays else None
    pooled = _gaussian(path, arrays, "", count)
    spatial = _gaussian(path, arrays, "_s", count) if "mu_s" in arrays and "sigma_s" in arrays else None
    return pooled, spatial


def _gaussian(path: str | Path, arrays: dict[str, Any], suffix: str, count: int | None) -> Gaussian:
    mean, covariance = arrays[f"mu{suffix}"], arrays[f"sigma{suffix}"]
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise ConfigError(
            f"{path}: mu{suffix} has shape {list(mean.shape)} and sigma{suffix} {list(covariance.shape)}, "
            "but they must be [D] and [D, D]"
        )
    return Gaussian(torch.from_numpy(mean.astype(np.float64)), torch.from_numpy(covariance.astype(np.float64)), count)
