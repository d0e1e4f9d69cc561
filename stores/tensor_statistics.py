"""Mean and variance of arrays of a store per position, per channel or over all numbers: streamed, in float64.

Parts are merged as in Chan, Golub and LeVeque (1983), so any split of the samples gives the same result up to rounding
of float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


@dataclass(slots=True)
class TensorStatistics:
    """Count, mean and sum of squared deviations per element of a sample."""

    count: int = 0
    mean: Array | float = 0.0
    squares: Array | float = 0.0

    def append(self, samples: npt.NDArray[Any]) -> None:
        """Add samples `[B, ...]`."""
        if len(samples):
            values = samples.astype(np.float64)
            mean = values.mean(axis=0)
            self.merge(TensorStatistics(len(values), mean, ((values - mean) ** 2).sum(axis=0)))

    def merge(self, other: TensorStatistics) -> None:
        """Add the samples of other statistics."""
        total = self.count + other.count
        if not other.count:
            return
        difference = other.mean - self.mean
        self.mean = self.mean + difference * (other.count / total)
        self.squares = self.squares + other.squares + difference**2 * (self.count * other.count / total)
        self.count = total

    @property
    def var(self) -> Array:
        """The population variance, shaped as a sample."""
        return np.asarray(self.squares) / self.count
