"""CKNNA: how far two encoders agree about which images are alike, and how much."""

import torch
from torch import Tensor

from ..errors import ConfigError
from .arrays import Array, as_features


def cknna(features_a: Array, features_b: Array, topk: int = 10) -> float:
    """Centered kernel nearest-neighbor alignment of the same N images under two encoders.

    Of the Platonic Representation Hypothesis (Huh et al. 2024, arXiv 2405.07987, appendix A): the kernel alignment
    of the inner products, kept only where j is among the `topk` neighbors of i under both encoders:

        cknna = align(A, B) / (sqrt(align(A, A) align(B, B)) + 1e-6)

    with the unbiased HSIC of Song et al. (2012, equation 5), as the published `metrics.py` has it; REPA plots it for
    a SiT's hidden states against DINOv2. Features are [N, Da] and [N, Db], taken as they come, in float64; the
    published pipeline divides each row by its norm first. About 1 for an encoder and itself, about 0 for unrelated
    ones. Not quite symmetric in a and b, possibly negative, and NaN where align(A, A) is negative: all as published.
    Memory: six [N, N] float64 matrices.

    Raises ConfigError when the numbers of rows differ, N is below 4, or topk is not in 2 to N - 1.
    """
    a = as_features(features_a, "features_a").to(torch.float64)
    b = as_features(features_b, "features_b").to(torch.float64)
    if len(a) != len(b):
        raise ConfigError(f"features of {len(a)} and {len(b)} images; both must be of the same images in one order")
    if len(a) < 4 or not 2 <= topk < len(a):
        raise ConfigError(
            f"topk={topk} with {len(a)} images; at least 4 images are needed, and topk of 2 to {len(a) - 1}"
        )
    products_a, products_b = a @ a.T, b @ b.T
    near_a, near_b = _neighbors(products_a, topk), _neighbors(products_b, topk)
    near_both = near_a & near_b
    aligned = _hsic(products_a * near_both, products_b * near_both)
    products_a *= near_a
    products_b *= near_b
    own = _hsic(products_a, products_a) * _hsic(products_b, products_b)
    return float(aligned / (own.sqrt() + 1e-6))


def _neighbors(products: Tensor, topk: int) -> Tensor:
    """Mask [N, N]: whether column j is one of the topk largest in row i, the diagonal left out."""
    others = products.clone().fill_diagonal_(-torch.inf)
    mask = torch.zeros_like(products, dtype=torch.bool)
    return mask.scatter_(1, others.topk(topk, dim=1).indices, True)


def _hsic(a: Tensor, b: Tensor) -> Tensor:
    """Unbiased HSIC of two kernel matrices [N, N] with empty diagonals, which need not be symmetric here."""
    n = len(a)
    pairs = (a * b.T).sum()
    apart = a.sum() * b.sum() / ((n - 1) * (n - 2))
    chained = 2 * (a.sum(0) @ b.sum(1)) / (n - 2)  # the sum of all elements of a @ b
    return (pairs + apart - chained) / (n * (n - 3))
