"""Spatial structure of one encoder's patch tokens: the metrics of iREPA (arXiv 2512.10794).

They rank encoders by how much they help training, before any is trained: with LDS the paper reports a correlation
of |r| = 0.85 with FID. Tokens [B, N, D] stand row by row on a square grid; distances on it are Manhattan, in patches;
cosines are taken in float32. Definitions are those of the published code (`metrics/spatial_metrics.py`).
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..errors import ConfigError
from .arrays import full_float32


def lds(patch_tokens: Tensor, far_distance: int = 6) -> Tensor:
    """Local versus distant similarity [B]: mean cosine of adjacent tokens less that of tokens far apart.

    Adjacent is at distance 1, far is `far_distance` and beyond. Raises ConfigError when the grid has no such pair.
    """
    distances = _grid_distances(patch_tokens)
    if distances.max() < far_distance:
        raise ConfigError(
            f"a grid of {len(distances)} tokens has no two at distance {far_distance} or more; "
            "take tokens of a larger image, or a smaller far_distance"
        )
    near, far = _mean_cosines(patch_tokens, torch.stack([distances == 1, distances >= far_distance])).unbind(1)
    return near - far


def cds(patch_tokens: Tensor, max_distance: int = 8) -> Tensor:
    """Correlation decay slope [B]: how fast the mean cosine falls with distance, per patch.

    The negative slope of the least-squares line through the mean cosines at distances 1 to `max_distance`, those
    that the grid has. Raises ConfigError when it has fewer than two of them.
    """
    distances = _grid_distances(patch_tokens)
    steps = torch.arange(1, min(max_distance, int(distances.max())) + 1, device=distances.device)
    if len(steps) < 2:
        raise ConfigError(
            f"a slope through {len(steps)} distance(s): take a grid of 2x2 tokens or more (here {len(distances)}), "
            f"and max_distance 2 or more (here {max_distance})"
        )
    cosines = _mean_cosines(patch_tokens, distances == steps[:, None, None])
    centered = steps - steps.to(cosines).mean()
    return -(cosines @ centered) / centered.square().sum()


def rmsc(patch_tokens: Tensor) -> Tensor:
    """Root mean square contrast [B]: RMS distance of the normalized tokens from their mean.

    0 when all tokens point the same way, 1 when their directions cancel.
    """
    tokens = _directions(patch_tokens)
    return (tokens - tokens.mean(1, keepdim=True)).square().sum(2).mean(1).sqrt()


def _directions(patch_tokens: Tensor) -> Tensor:
    if patch_tokens.ndim != 3:
        raise ConfigError(f"patch tokens of shape {list(patch_tokens.shape)}, but they must be [images, tokens, width]")
    return normalize(patch_tokens.float(), dim=-1, eps=1e-8)


def _grid_distances(patch_tokens: Tensor) -> Tensor:
    """Manhattan distance [N, N] of every two tokens on their square grid."""
    count = patch_tokens.shape[1] if patch_tokens.ndim == 3 else 0
    side = math.isqrt(count)
    if side == 0 or side * side != count:
        raise ConfigError(
            f"patch tokens of shape {list(patch_tokens.shape)}: [images, tokens, width] with a square number of tokens "
            "is needed; leave the class token out"
        )
    places = torch.arange(count, device=patch_tokens.device)
    rows, columns = places // side, places % side
    return (rows[:, None] - rows).abs() + (columns[:, None] - columns).abs()


def _mean_cosines(patch_tokens: Tensor, masks: Tensor) -> Tensor:
    """Mean cosine [B, M] over the pairs that each of the masks [M, N, N] selects."""
    tokens = _directions(patch_tokens)
    with full_float32():
        cosines = tokens @ tokens.transpose(1, 2)
        return cosines.flatten(1) @ masks.flatten(1).to(cosines).T / masks.sum((1, 2))
