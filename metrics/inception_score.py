"""Inception score of Salimans et al. (2016, arXiv 1606.03498)."""

import torch

from ..errors import ConfigError
from .arrays import Array, as_features


def inception_score(probabilities: Array, split_size: int = 5000) -> float:
    """Mean over splits of exp(mean KL(p(y|x) || p(y))), as the ADM suite computes it.

    `probabilities` [N, K] are softmax outputs, of any float type; computed in float64. Splits are consecutive runs
    of `split_size` rows, the last one whatever is left, and p(y) is the mean over the split (OpenAI guided-diffusion,
    evaluations/evaluator.py: `compute_inception_score`). A probability of 0 contributes 0; there it would be NaN.

    Raises ConfigError when rows are no distributions, or the split size is below 1.
    """
    rows = as_features(probabilities, "probabilities")
    if split_size < 1:
        raise ConfigError(f"split_size={split_size}: a split holds 1 image at least; the published value is 5000")
    scores = []
    for split in torch.split(rows, split_size):
        given = split.to(torch.float64)
        if (given < 0).any() or ((given.sum(1) - 1).abs() > 1e-3).any():
            raise ConfigError(
                "probabilities: some rows are negative or do not sum to 1; pass the softmax of the logits"
            )
        divergence = torch.xlogy(given, given) - torch.xlogy(given, given.mean(0))
        scores.append(divergence.sum(1).mean().exp())
    return torch.stack(scores).mean().item()
