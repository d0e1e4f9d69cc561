"""MIND, a sliced Wasserstein distance between two sets of features (arXiv 2605.06797)."""

from collections.abc import Iterator

import torch
from torch import Tensor

from ..errors import ConfigError
from .arrays import Array, as_features, check_same_width, full_float32, working_dtype

PROJECTIONS, SEED = 1000, 2020  # torch-fidelity's defaults, with which MIND is published
BLOCK = 100  # directions at a time: their projections of both sets are in memory


def mind(reference: Array, samples: Array, projections: int = PROJECTIONS, seed: int = SEED) -> float:
    """Return 3 D times the mean squared difference of the sorted projections of both sets on random directions.

    Follows `metric_mind.py` of torch-fidelity (5e211a9), which no release of it has yet. If the sets differ in size,
    the larger one is cut to a random subset. The subset and the directions are drawn, in this order, from one generator
    on the CPU, so the value depends on the seed, and on the order of the larger set's rows. Runs on the features'
    device, in float32 (float64 if both sets are).

    Args:
        reference: features [N, D].
        samples: features [M, D].
        projections: number of directions.
        seed: of the subset and the directions.

    Raises:
        ConfigError: the widths differ, or there is no direction.
    """
    total, count = 0.0, 0
    for own, other in projections_of(reference, samples, projections, seed):
        difference = own.sort(dim=1).values - other.sort(dim=1).values
        total += float(difference.square().sum(dtype=torch.float64))
        count = own.shape[1]
    return 3 * samples.shape[1] * total / (projections * count)


def projections_of(
    reference: Array, samples: Array, projections: int = PROJECTIONS, seed: int = SEED
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield blocks of projections [directions, rows] of the samples and of the reference, in one size.

    Raises:
        ConfigError: as `mind`.
    """
    reference, samples = as_features(reference, "reference"), as_features(samples, "samples")
    check_same_width(reference, samples, "reference and samples")
    if projections < 1:
        raise ConfigError(f"projections={projections}; expected at least 1 (the published value is {PROJECTIONS})")
    generator = torch.Generator().manual_seed(seed)
    reference, samples = _equal_sizes(reference, samples, generator)
    directions = unit_directions(projections, samples.shape[1], generator)
    dtype = working_dtype(reference, samples)
    reference, samples = reference.to(dtype), samples.to(dtype)
    for block in directions.to(samples).split(BLOCK):
        with full_float32():
            pair = block @ samples.T, block @ reference.T
        yield pair


def kept_rows(count: int, of: int, generator: torch.Generator) -> Tensor:
    """Draw which rows [count] of the larger set, of `of` rows, are kept."""
    return torch.randperm(of, generator=generator)[:count]


def _equal_sizes(a: Tensor, b: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    if len(a) > len(b):
        return a[kept_rows(len(b), len(a), generator).to(a.device)], b
    if len(b) > len(a):
        return a, b[kept_rows(len(a), len(b), generator).to(b.device)]
    return a, b


def unit_directions(count: int, width: int, generator: torch.Generator) -> Tensor:
    """Draw unit vectors [count, width], uniformly on the sphere."""
    drawn = torch.randn(count, width, generator=generator)
    directions: Tensor = drawn / torch.linalg.vector_norm(drawn, dim=1, keepdim=True)
    return directions
