"""Improved precision and recall (Kynkäänniemi et al. 2019, arXiv 1904.06991), density and coverage."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import ConfigError
from .arrays import Array, as_features, check_same_width, full_float32, working_dtype

ROUNDING = 64  # units in the last place in which features of equal images may differ


class PrecisionRecall(NamedTuple):
    """The fraction of samples on the reference's manifold, and of the reference on the samples' manifold."""

    precision: float
    recall: float


class DensityCoverage(NamedTuple):
    """How many balls of the reference a sample is in, divided by k, and the fraction of balls that hold a sample."""

    density: float  # the mean of `densities`
    coverage: float
    densities: Tensor  # [M] float64, of each sample


def precision_recall(reference: Array, samples: Array, k: int = 3, block: int = 4096) -> PrecisionRecall:
    """Return precision and recall of samples against a reference.

    A set's manifold is the union of balls around its points, with the distance to the point's k-th nearest neighbor in
    the same set, not counting itself, as radius. The definitions are the ADM suite's (OpenAI guided-diffusion,
    evaluations/evaluator.py: `nhood_sizes=(3,)`, squared distances, `<=`). ADM computes distances in float16, so its
    values differ by up to about 0.005; here they are float32, or float64 if both sets are. Distances below the rounding
    error are 0, so that equal images, whose features a detector may round differently in different batches, are in each
    other's balls even if the radii are 0, as those of collapsed samples are. Runs on the device of the features.

    Args:
        reference: features [N, D].
        samples: features [M, D].
        k: the neighbor that sets the radius.
        block: rows per block; two blocks and their distances are in memory at a time. The block size changes the result
            only by rounding.

    Raises:
        ConfigError: a set has k rows or fewer, or the widths differ.
    """
    return _compare(reference, samples, k, None, block)[0]


def manifold_metrics(
    reference: Array, samples: Array, k: int = 3, density_k: int = 5, block: int = 4096
) -> tuple[PrecisionRecall, DensityCoverage | None]:
    """Return precision and recall, and density and coverage (Naeem et al. 2020, arXiv 2002.09797), in one pass.

    Density and coverage count samples in the balls of the reference, with the distance to its `density_k`-th nearest
    neighbor as radius. As in the authors' package `prdc`, a sample at exactly that distance is outside. They are None
    if the reference has `density_k` rows or fewer.

    Args:
        reference: features [N, D].
        samples: features [M, D].
        k: the neighbor that sets the radius for precision and recall.
        density_k: the neighbor that sets the radius for density and coverage; 5 as published.
        block: rows per block, as in `precision_recall`.

    Raises:
        ConfigError: a set has k rows or fewer, or the widths differ.
    """
    return _compare(reference, samples, k, density_k, block)


def _compare(
    reference: Array, samples: Array, k: int, density_k: int | None, block: int
) -> tuple[PrecisionRecall, DensityCoverage | None]:
    reference, samples = as_features(reference, "reference"), as_features(samples, "samples")
    check_same_width(reference, samples, "reference and samples")
    for name, features in (("reference", reference), ("samples", samples)):
        if not 1 <= k < len(features):
            raise ConfigError(
                f"{name}: k={k} with {len(features)} image(s); expected k from 1 to the number of images minus 1"
            )
    if density_k is not None and density_k >= len(reference):
        density_k = None
    # Distances do not depend on the origin, but lose fewer digits the closer it is.
    center = reference.mean(0, dtype=torch.float64).to(working_dtype(reference, samples))
    same = _square_of_equal_rows(reference, samples)
    with full_float32():
        nearest = _nearest(reference, center, max(k, density_k or 0), block, same)
        reference_radii, density_radii = nearest[:, k], nearest[:, density_k or 0]
        samples_radii = _nearest(samples, center, k, block, same)[:, k]
        reference_inside = torch.zeros_like(reference_radii, dtype=torch.bool)
        samples_inside = torch.zeros_like(samples_radii, dtype=torch.bool)
        covered = torch.zeros_like(reference_inside)
        balls = torch.zeros_like(samples_radii, dtype=torch.int64)  # of the reference that each sample is in
        for i in range(0, len(reference), block):
            rows = _block(reference, i, block, center)
            for j in range(0, len(samples), block):
                squares = _squared_distances(rows, _block(samples, j, block, center), same)
                reference_inside[i : i + block] |= (squares <= samples_radii[j : j + block]).any(1)
                samples_inside[j : j + block] |= (squares <= reference_radii[i : i + block, None]).any(0)
                if density_k:
                    inside = squares < density_radii[i : i + block, None]
                    covered[i : i + block] |= inside.any(1)
                    balls[j : j + block] += inside.sum(0)
    precision_and_recall = PrecisionRecall(
        precision=samples_inside.double().mean().item(), recall=reference_inside.double().mean().item()
    )
    if not density_k:
        return precision_and_recall, None
    densities = balls.double() / density_k
    return precision_and_recall, DensityCoverage(densities.mean().item(), covered.double().mean().item(), densities)


def _square_of_equal_rows(*sets: Tensor) -> float:
    """Return a squared distance that rows exceed unless they are the same up to the rounding of a detector."""
    norms = (torch.linalg.vector_norm(features, dim=1, dtype=torch.float64) for features in sets)
    size = max(float(each.square().mean()) for each in norms)
    return size * (ROUNDING * torch.finfo(working_dtype(*sets)).eps) ** 2


def _nearest(features: Tensor, center: Tensor, k: int, block: int, same: float) -> Tensor:
    """Return the squared distances [N, k+1] of each row to itself and to its k nearest neighbors, ascending."""
    nearest = torch.full((len(features), k + 1), torch.inf, dtype=center.dtype, device=center.device)
    for i in range(0, len(features), block):
        rows = _block(features, i, block, center)
        for j in range(i, len(features), block):  # the other half of the matrix is the transpose
            squares = _squared_distances(rows, _block(features, j, block, center), same)
            _keep_smallest(nearest[i : i + block], squares)
            if j > i:
                _keep_smallest(nearest[j : j + block], squares.T)
    return nearest


def _keep_smallest(nearest: Tensor, squares: Tensor) -> None:
    """Update `nearest` [R, k+1], ascending, with the smallest values of itself and `squares` [R, C]."""
    width = nearest.shape[1]
    candidates = squares.topk(min(width, squares.shape[1]), dim=1, largest=False).values
    nearest.copy_(torch.cat([nearest, candidates], dim=1).topk(width, dim=1, largest=False).values)


def _block(features: Tensor, start: int, size: int, center: Tensor) -> Tensor:
    return features[start : start + size].to(center) - center


def _squared_distances(a: Tensor, b: Tensor, same: float) -> Tensor:
    """Return |a_i - b_j|^2 as [A, B], with one matrix product; 0 where it is below `same` or the rounding error.

    The error of a sum of D products grows as sqrt(D) times the unit roundoff, in whatever order a processor adds them
    (Higham and Mary 2019, "A new approach to probabilistic rounding error analysis").
    """
    rounding = (4 + math.sqrt(a.shape[1])) * torch.finfo(a.dtype).eps
    sums = b.square().sum(1) + a.square().sum(1, keepdim=True)
    squares = torch.addmm(sums, a, b.T, alpha=-2)
    return squares.masked_fill_(squares <= sums.mul_(rounding).add_(same), 0)
