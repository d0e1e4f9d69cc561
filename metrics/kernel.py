"""Kernel distance, which is KID on Inception features."""

import torch
from torch import Tensor

from ..errors import ConfigError
from .arrays import Array, as_features, check_same_width, full_float32, working_dtype


def kernel_distance(reference: Array, samples: Array, block: int = 4096) -> float:
    """Return the squared maximum mean discrepancy of two sets under the kernel k(x, y) = (x.y / D + 1)^3.

    The unbiased estimator of Bińkowski et al. (2018, arXiv 1801.01401, equation 4) over *all* pairs. Their published
    code, like torch-fidelity's, averages it over random subsets of 1,000 images: the same expectation, with more noise
    and a seed. It can be slightly negative if both sets come from the same distribution.

    Runs on the features' device: matrix products in float32 (float64 if both sets are), sums in float64.

    Args:
        reference: features [N, D].
        samples: features [M, D].
        block: rows per block; two blocks and their products are in memory at a time.

    Raises:
        ConfigError: a set has fewer than two rows, or the widths differ.
    """
    reference, samples = as_features(reference, "reference"), as_features(samples, "samples")
    check_same_width(reference, samples, "reference and samples")
    n, m = len(reference), len(samples)
    if n < 2 or m < 2:
        raise ConfigError(f"KID of {n} reference images and {m} samples; expected at least 2 of each")
    dtype = working_dtype(reference, samples)
    with full_float32():
        within_reference = _sum_of_pairs(reference, dtype, block) / (n * (n - 1))
        within_samples = _sum_of_pairs(samples, dtype, block) / (m * (m - 1))
        across = 0.0
        for a in torch.split(reference, block):
            rows = a.to(dtype)
            for b in torch.split(samples, block):
                across += _kernel_sum(rows, b.to(dtype))
    return within_reference + within_samples - 2 * across / (n * m)


def _sum_of_pairs(features: Tensor, dtype: torch.dtype, block: int) -> float:
    """Return the sum of k(x_i, x_j) over all i != j."""
    total = 0.0
    for i in range(0, len(features), block):
        rows = features[i : i + block].to(dtype)
        total += _kernel_sum(rows, rows) - float(
            cubic_kernel(rows.square().sum(1), rows.shape[1]).sum(dtype=torch.float64)
        )
        for j in range(i + block, len(features), block):
            total += 2 * _kernel_sum(rows, features[j : j + block].to(dtype))
    return total


def _kernel_sum(a: Tensor, b: Tensor) -> float:
    return float(cubic_kernel(a @ b.T, a.shape[1]).sum(dtype=torch.float64))


def cubic_kernel(products: Tensor, width: int) -> Tensor:
    """Return the kernel of rows of a width whose products are given."""
    return (products / width + 1) ** 3
