"""Fréchet distance between two Gaussians: FID on pooled Inception features, sFID on its spatial ones."""

import torch
from torch import Tensor

from ..errors import ConfigError
from .arrays import Array, as_tensor, check_same_width


def frechet_distance(mu1: Array, sigma1: Array, mu2: Array, sigma2: Array) -> float:
    """Return the squared Fréchet distance between N(mu1, sigma1) and N(mu2, sigma2), as FID (Heusel et al. 2017).

    |mu1 - mu2|^2 + tr(sigma1) + tr(sigma2) - 2 tr((sigma1 sigma2)^(1/2))

    The last trace is computed from the eigenvalues of the symmetric matrix R^T sigma2 R with R R^T = sigma1, which are
    those of sigma1 sigma2. They are real and non-negative at any rank, so unlike with a general matrix square root,
    nothing has to be added to the diagonal and no imaginary part discarded. Agrees with the ADM suite's
    `frechet_distance` (OpenAI guided-diffusion, evaluations/evaluator.py) to the latter's rounding.

    Args:
        mu1: mean [D], of any floating dtype; computed in float64. Tensors must be on one device.
        sigma1: covariance [D, D].
        mu2: mean [D].
        sigma2: covariance [D, D].

    Raises:
        ConfigError: shapes do not match, or a value is not finite.
    """
    mu1, sigma1 = _checked(mu1, sigma1, "mu1 and sigma1")
    mu2, sigma2 = _checked(mu2, sigma2, "mu2 and sigma2")
    check_same_width(mu1, mu2, "mu1 and mu2")
    return max(float(squared_distance(mu1, sigma1, mu2, sigma2)), 0.0)


def squared_distance(mu1: Tensor, sigma1: Tensor, mu2: Tensor, sigma2: Tensor) -> Tensor:
    """Return the distance as a tensor, without checks. It can be differentiated by `mu2` and `sigma2`."""
    root = _root(sigma1)
    squares = torch.linalg.eigvalsh(root.T @ sigma2 @ root).clamp(min=0)
    distance: Tensor = (mu1 - mu2).square().sum() + sigma1.trace() + sigma2.trace() - 2 * squares.sqrt().sum()
    return distance


def _root(sigma: Tensor) -> Tensor:
    """Return R [D, rank] with R R^T = sigma: the Cholesky factor, or scaled eigenvectors if sigma is singular.

    Eigenvalues within rounding of zero (the threshold of numpy's `matrix_rank`) are treated as zero: their square
    roots, up to a hundred million times larger, would not be negligible.
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
        raise ConfigError(f"{names} have shapes {list(mu.shape)} and {list(sigma.shape)}; expected [D] and [D, D]")
    if not (mu.isfinite().all() and sigma.isfinite().all()):
        raise ConfigError(f"{names} hold NaN or infinite values; check the features that they were computed from")
    return mu, sigma
