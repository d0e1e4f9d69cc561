"""Inception score (Salimans et al. 2016, arXiv 1606.03498)."""

import torch

from ..errors import ConfigError
from .arrays import Array, as_features

SPLIT_SIZE = 5000  # as published


def inception_score(probabilities: Array, split_size: int = SPLIT_SIZE) -> float:
    """Return the mean over splits of exp(mean KL(p(y|x) || p(y))), as in the ADM suite.

    Follows `compute_inception_score` of OpenAI guided-diffusion (evaluations/evaluator.py), where p(y) is the mean over
    the split. A probability of 0 contributes 0; there it gives NaN.

    Args:
        probabilities: softmax outputs [N, K] of any floating dtype; computed in float64.
        split_size: rows per split. Splits are consecutive, and the last one may be smaller.

    Raises:
        ConfigError: rows are not distributions, or the split size is below 1.
    """
    rows = as_features(probabilities, "probabilities")
    if split_size < 1:
        raise ConfigError(f"split_size={split_size}; expected at least 1 (the published value is 5000)")
    scores = []
    for split in torch.split(rows, split_size):
        conditional = split.to(torch.float64)
        if (conditional < 0).any() or ((conditional.sum(1) - 1).abs() > 1e-3).any():
            raise ConfigError(
                "probabilities: some rows have negative values or do not sum to 1; pass the softmax of the logits"
            )
        divergence = torch.xlogy(conditional, conditional) - torch.xlogy(conditional, conditional.mean(0))
        scores.append(divergence.sum(1).mean().exp())
    return torch.stack(scores).mean().item()
