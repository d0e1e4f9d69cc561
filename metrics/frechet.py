"""Fréchet distance between two Gaussians: FID on pooled Inception features, sFID on its spatial ones."""

import torch
from torch import Tensor

from ..errors import ConfigError
from .arrays import Array, as_tensor, check_same_width


def frechet_distance(mu1: Array, sigma1: Array, mu2: Array, sigma2: Array) -> float:
    """Squared Fréchet distance between N(mu1, sigma1) and N(mu2, sigma2), as Heusel et al. (2017) define FID.

    |mu1 - mu2|^2 + tr(sigma1) + tr(sigma2) - 2 tr((sigma1 sigma2)^(1/2))

    Means are [D], covariances [D, D], tensors on one device or arrays of any float type; computed in float64. The
    last trace comes from the eigenvalues of the symmetric matrix R^T sigma2 R, with R R^T = sigma1, which are
    those of sigma1 sigma2: they are real and not negative whatever the rank, so nothing needs to be added to the
    diagonal and no imaginary part thrown away, as is done around a general matrix square root. Agrees with the ADM
    suite's `frechet_distance` (OpenAI guided-diffusion, evaluations/evaluator.py) to its rounding.

    Raises ConfigError when shapes do not fit, or when a number is not finite.
    """
    mu1, sigma1 = _checked(mu1, sigma1, "mu1 and sigma1")
    mu2, sigma2 = _checked(mu2, sigma2, "mu2 and sigma2")
    check_same_width(mu1, mu2, "mu1 and mu2")
    root = _root(sigma1)
    squares = torch.linalg.eigvalsh(root.T @ sigma2 @ root).clamp(min=0)
    distance = (mu1 - mu2).square().sum() + sigma1.trace() + sigma2.trace() - 2 * squares.sqrt().sum()
    return max(float(distance), 0.0)


def _root(sigma: Tensor) -> Tensor:
    """R [D, rank] with R R^T = sigma: Cholesky's factor, or eigenvectors where the matrix is singular.

    Eigenvalues below what rounding leaves of zero (numpy's `matrix_rank` draws the same line) are taken as zero: their
    square roots, a hundred million times larger, would not be negligible any more.
    """
    root: Tensor
    root, failed = torch.linalg.cholesky_ex(sigma)
    if failed:
        values, vectors = torch.linalg.eigh(sigma)
        kept = values > len(values) * torch.finfo(values.dtype).eps * values[-1]
        root = vectors[:, kept] * values[kept].sqrt()
    return root


def _checked(mu: Array, sigma: Array, names: str) -> tuple[Tensor, Tensor]:
    mu, sigma = as_tensor(mu).to(torch.float64), as_tensor(sigma).to(torch.float64)
    if mu.ndim != 1 or len(mu) == 0 or sigma.shape != (len(mu), len(mu)):
        raise ConfigError(f"{names} have shapes {list(mu.shape)} and {list(sigma.shape)}, but must be [D] and [D, D]")
    if not (mu.isfinite().all() and sigma.isfinite().all()):
        raise ConfigError(f"{names} hold NaN or infinite numbers; some of the features they come from did")
    return mu, sigma
