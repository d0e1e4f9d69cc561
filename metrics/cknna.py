"""CKNNA: agreement of two encoders on which images are similar, and how similar."""

import torch
from torch import Tensor

from ..errors import ConfigError
from .arrays import Array, as_features


def cknna(features_a: Array, features_b: Array, topk: int = 10) -> float:
    """Return the centered kernel nearest-neighbor alignment of the same N images under two encoders.

    From the Platonic Representation Hypothesis (Huh et al. 2024, arXiv 2405.07987, appendix A): the alignment of the
    inner-product kernels, restricted to pairs where j is among the `topk` neighbors of i under both encoders:

        cknna = align(A, B) / (sqrt(align(A, A) align(B, B)) + 1e-6)

    with the unbiased HSIC of Song et al. (2012, equation 5), as in the published `metrics.py`. REPA plots it for the
    hidden states of a SiT against DINOv2. As published, it is not exactly symmetric in a and b, may be negative, and is
    NaN where align(A, A) align(B, B) is negative. Computed in float64. Memory: six [N, N] float64 matrices.

    Args:
        features_a: features [N, Da], used without normalization. The published pipeline divides each row by its norm
            first.
        features_b: features [N, Db] of the same images in the same order.
        topk: number of nearest neighbors.

    Returns:
        About 1 for an encoder and itself, about 0 for unrelated encoders.

    Raises:
        ConfigError: the numbers of rows differ, N is below 4, or topk is not within 2 to N - 1.
    """
    a = as_features(features_a, "features_a").to(torch.float64)
    b = as_features(features_b, "features_b").to(torch.float64)
    if len(a) != len(b):
        raise ConfigError(f"features of {len(a)} and {len(b)} images; expected the same images in the same order")
    if len(a) < 4 or not 2 <= topk < len(a):
        raise ConfigError(
            f"topk={topk} with {len(a)} images; expected at least 4 images and topk from 2 to {len(a) - 1}"
        )
    products_a, products_b = a @ a.T, b @ b.T
    mask_a, mask_b = _neighbor_mask(products_a, topk), _neighbor_mask(products_b, topk)
    mutual = mask_a & mask_b
    alignment = _hsic(products_a * mutual, products_b * mutual)
    products_a *= mask_a
    products_b *= mask_b
    self_alignment = _hsic(products_a, products_a) * _hsic(products_b, products_b)
    return float(alignment / (self_alignment.sqrt() + 1e-6))


def _neighbor_mask(products: Tensor, topk: int) -> Tensor:
    """Return a mask [N, N] of the topk largest values in each row, excluding the diagonal."""
    others = products.clone().fill_diagonal_(-torch.inf)
    mask = torch.zeros_like(products, dtype=torch.bool)
    return mask.scatter_(1, others.topk(topk, dim=1).indices, True)


def _hsic(a: Tensor, b: Tensor) -> Tensor:
    """Return the unbiased HSIC of two kernel matrices [N, N] with zero diagonals, which need not be symmetric."""
    n = len(a)
    trace = (a * b.T).sum()
    sums = a.sum() * b.sum() / ((n - 1) * (n - 2))
    cross = 2 * (a.sum(0) @ b.sum(1)) / (n - 2)  # the sum of all elements of a @ b
    return (trace + sums - cross) / (n * (n - 3))
