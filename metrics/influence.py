"""How much each sample moves a metric, and the 95% interval that follows: the infinitesimal jackknife.

A bootstrap draws the samples again and again and computes the metric of every draw. To first order, a metric of a draw
is the mean of one term per sample (Efron 1982, "The jackknife, the bootstrap and other resampling plans", chapter 6).
So the spread over infinitely many draws is known from the spread of the terms. One pass replaces hundreds of Fréchet
distances, and no draw repeats images, which would bias distances upward. The reference is taken as fixed.
"""

import math

import torch
from torch import Tensor

from .arrays import Array, as_features, full_float32, working_dtype
from .gaussian import Gaussian
from .inception_score import SPLIT_SIZE
from .kernel import cubic_kernel
from .mind import PROJECTIONS, projections_of

BLOCK = 4096  # rows at a time
_NORMAL_95 = 1.959964  # standard errors on each side of 95% of a normal distribution


def margin(terms: Tensor) -> float:
    """Return half the width of the 95% interval of a mean of terms [M]; 0 for a single one."""
    deviation = terms.double().std().item() if len(terms) > 1 else 0.0
    return _NORMAL_95 * deviation / math.sqrt(len(terms))


def margin_of_fraction(fraction: float, count: int) -> float:
    """Return half the width of the 95% interval of a fraction of `count` images."""
    return _NORMAL_95 * math.sqrt(fraction * (1 - fraction) / max(count - 1, 1))


def frechet_terms(features: Array, own: Gaussian, reference: Gaussian) -> Tensor:
    """Return the terms [M] of the Fréchet distance of samples with features [M, D] and statistics `own`.

    The gradient by the covariance is I - R (R^T sigma R)^(-1/2) R^T with R R^T the covariance of the reference. In
    directions in which a set does not vary, no draw of the same images does, so they are left out.
    """
    features = as_features(features, "features")
    values, vectors = torch.linalg.eigh(reference.covariance)
    root = vectors * values.clamp(min=0).sqrt()
    values, vectors = torch.linalg.eigh(root.T @ own.covariance @ root)
    kept = values > len(values) * torch.finfo(torch.float32).eps * values[-1]
    factor = (root @ vectors[:, kept] * values[kept] ** -0.25).to(torch.float32)
    shift = 2 * (own.mean - reference.mean).to(torch.float32)
    terms = []
    with full_float32():
        for rows in features.split(BLOCK):
            centered = (rows.to(own.mean) - own.mean).to(torch.float32)
            spread = centered.square().sum(1) - (centered @ factor).square().sum(1)
            terms.append(spread + centered @ shift)
    return torch.cat(terms)


def kernel_terms(reference: Array, samples: Array) -> Tensor:
    """Return the terms [M] of the kernel distance: twice the mean kernel with the other samples, minus the reference's.

    Args:
        reference: features [N, D].
        samples: features [M, D].
    """
    reference, samples = as_features(reference, "reference"), as_features(samples, "samples")
    dtype, count, width = working_dtype(reference, samples), len(samples), samples.shape[1]

    def sums(rows: Tensor, others: Tensor) -> Tensor:
        blocks = (cubic_kernel(rows @ each.to(dtype).T, width) for each in others.split(BLOCK))
        return torch.stack([each.sum(1, dtype=torch.float64) for each in blocks]).sum(0)

    terms = []
    with full_float32():
        for block in samples.split(BLOCK):
            rows = block.to(dtype)
            among = sums(rows, samples) - cubic_kernel(rows.square().sum(1), width)
            terms.append(2 * (among / (count - 1) - sums(rows, reference) / len(reference)))
    return torch.cat(terms)


def mind_terms(reference: Array, samples: Array) -> Tensor:
    """Return the terms of MIND, of the samples that it compares: the potential of the transport on every direction.

    Along a direction, its slope is twice the distance that a sample is moved.

    Args:
        reference: features [N, D].
        samples: features [M, D].
    """
    terms: Tensor | None = None
    for own, other in projections_of(reference, samples):
        places, order = own.double().sort(dim=1)
        slopes = 2 * (places - other.double().sort(dim=1).values)
        potential = torch.nn.functional.pad(torch.cumulative_trapezoid(slopes, places, dim=1), (1, 0))
        found = torch.zeros_like(potential).scatter_(1, order, potential - potential.mean(1, keepdim=True)).sum(0)
        terms = found if terms is None else terms + found
    assert terms is not None  # there is at least one direction
    return terms * (3 * samples.shape[1] / PROJECTIONS)


def inception_terms(probabilities: Array, split_size: int = SPLIT_SIZE) -> Tensor:
    """Return the terms [M] of the inception score of probabilities [M, K], which is a mean over splits."""
    rows = as_features(probabilities, "probabilities")
    splits = rows.split(split_size)
    terms = []
    for split in splits:
        conditional = split.double()
        divergence = torch.xlogy(conditional, conditional) - torch.xlogy(conditional, conditional.mean(0))
        of_each = divergence.sum(1)
        score, weight = of_each.mean().exp(), len(rows) / (len(splits) * len(split))
        terms.append(score * (of_each - of_each.mean()) * weight)
    return torch.cat(terms)
