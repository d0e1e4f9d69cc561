"""Improved precision and recall of Kynkäänniemi et al. (2019, arXiv 1904.06991)."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import ConfigError
from .arrays import Array, as_features, check_same_width, full_float32, working_dtype


class PrecisionRecall(NamedTuple):
    """Share of samples that lie on the reference's manifold, and of the reference on the samples'."""

    precision: float
    recall: float


def precision_recall(reference: Array, samples: Array, k: int = 3, block: int = 4096) -> PrecisionRecall:
    """Precision and recall of samples [M, D] against a reference [N, D], by balls to the k-th nearest neighbor.

    A set's manifold is the union of balls around its points, each reaching to the point's k-th neighbor in the
    same set, the point itself not counted. The definitions are the ADM suite's (OpenAI guided-diffusion,
    evaluations/evaluator.py: `nhood_sizes=(3,)`, squared distances, `<=`). Its figures come from float16
    distances and differ by up to about 0.005; ours are float32, or float64 if both sets are.

    Works on the device that the features are on, and holds two blocks of `block` rows and their distances at a
    time, however many features there are; the block size does not change the result beyond rounding.

    Raises ConfigError when a set has no more than k rows, or when the widths differ.
    """
    reference, samples = as_features(reference, "reference"), as_features(samples, "samples")
    check_same_width(reference, samples, "reference and samples")
    for name, features in (("reference", reference), ("samples", samples)):
        if not 1 <= k < len(features):
            raise ConfigError(f"{name}: {len(features)} image(s) and k={k}, but k must be 1 to the images less one")
    # Distances do not see where the origin is, but lose fewer digits the nearer it is.
    center = reference.mean(0, dtype=torch.float64).to(working_dtype(reference, samples))
    with full_float32():
        reference_radii = _radii(reference, center, k, block)
        samples_radii = _radii(samples, center, k, block)
        reference_inside = torch.zeros_like(reference_radii, dtype=torch.bool)
        samples_inside = torch.zeros_like(samples_radii, dtype=torch.bool)
        for i in range(0, len(reference), block):
            rows = _block(reference, i, block, center)
            for j in range(0, len(samples), block):
                squares = _squared_distances(rows, _block(samples, j, block, center))
                reference_inside[i : i + block] |= (squares <= samples_radii[j : j + block]).any(1)
                samples_inside[j : j + block] |= (squares <= reference_radii[i : i + block, None]).any(0)
    return PrecisionRecall(
        precision=samples_inside.double().mean().item(), recall=reference_inside.double().mean().item()
    )


def _radii(features: Tensor, center: Tensor, k: int, block: int) -> Tensor:
    """Squared distance [N] of every row to its k-th neighbor among the others."""
    nearest = torch.full((len(features), k + 1), torch.inf, dtype=center.dtype, device=center.device)
    for i in range(0, len(features), block):
        rows = _block(features, i, block, center)
        for j in range(i, len(features), block):  # the other half of the matrix is this one, transposed
            squares = _squared_distances(rows, _block(features, j, block, center))
            _keep_smallest(nearest[i : i + block], squares)
            if j > i:
                _keep_smallest(nearest[j : j + block], squares.T)
    return nearest[:, k]  # column 0 is the row itself


def _keep_smallest(nearest: Tensor, squares: Tensor) -> None:
    """Let `nearest` [R, k+1], ascending, be the smallest of itself and of `squares` [R, C]."""
    width = nearest.shape[1]
    candidates = squares.topk(min(width, squares.shape[1]), dim=1, largest=False).values
    nearest.copy_(torch.cat([nearest, candidates], dim=1).topk(width, dim=1, largest=False).values)


def _block(features: Tensor, start: int, size: int, center: Tensor) -> Tensor:
    return features[start : start + size].to(center) - center


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """|a_i - b_j|^2 as [A, B], by one matrix product."""
    return torch.addmm(b.square().sum(1), a, b.T, alpha=-2).add_(a.square().sum(1, keepdim=True))
