"""iREPA's metrics of the spatial structure of an encoder's patch tokens (arXiv 2512.10794).

They rank encoders by how much they help training, without training: for LDS, the paper reports a correlation of
|r| = 0.85 with FID. Tokens [B, N, D] are in row-major order on a square grid. Grid distances are Manhattan, in patches;
cosine similarities are float32. Definitions are those of the published code (`metrics/spatial_metrics.py`).
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..errors import ConfigError
from .arrays import full_float32


def lds(patch_tokens: Tensor, far_distance: int = 6) -> Tensor:
    """Return the local-vs-distant similarity (LDS): mean cosine of adjacent tokens minus that of distant tokens.

    Args:
        patch_tokens: [B, N, D] of any floating dtype.
        far_distance: tokens are distant from this distance on, and adjacent at distance 1.

    Returns:
        [B] float32.

    Raises:
        ConfigError: the tokens are not on a square grid, or no two of them are that distant.
    """
    distances = _grid_distances(patch_tokens)
    if distances.max() < far_distance:
        raise ConfigError(
            f"a grid of {len(distances)} tokens has no pair at distance {far_distance} or more; "
            "use tokens of a larger image, or a smaller far_distance"
        )
    near, far = _mean_cosines(patch_tokens, torch.stack([distances == 1, distances >= far_distance])).unbind(1)
    return near - far


def cds(patch_tokens: Tensor, max_distance: int = 8) -> Tensor:
    """Return the correlation decay slope (CDS): the decrease of the mean cosine per patch of distance.

    The negative slope of the least-squares line through the mean cosines at distances 1 to `max_distance`.

    Args:
        patch_tokens: [B, N, D] of any floating dtype.
        max_distance: the largest distance. Distances that the grid does not have are left out.

    Returns:
        [B] float32.

    Raises:
        ConfigError: the tokens are not on a square grid, or it has fewer than two of the distances.
    """
    distances = _grid_distances(patch_tokens)
    steps = torch.arange(1, min(max_distance, int(distances.max())) + 1, device=distances.device)
    if len(steps) < 2:
        raise ConfigError(
            f"a slope needs at least 2 distances, found {len(steps)}; use a grid of at least 2x2 tokens "
            f"(found {len(distances)} tokens) and max_distance of at least 2 (found {max_distance})"
        )
    cosines = _mean_cosines(patch_tokens, distances == steps[:, None, None])
    centered = steps - steps.to(cosines).mean()
    return -(cosines @ centered) / centered.square().sum()


def rmsc(patch_tokens: Tensor) -> Tensor:
    """Return the root mean square contrast (RMSC): the RMS distance of normalized tokens from their mean.

    Args:
        patch_tokens: [B, N, D] of any floating dtype.

    Returns:
        [B] float32: 0 if all tokens have the same direction, 1 if their directions cancel.

    Raises:
        ConfigError: the tokens have another shape.
    """
    tokens = _directions(patch_tokens)
    return (tokens - tokens.mean(1, keepdim=True)).square().sum(2).mean(1).sqrt()


def _directions(patch_tokens: Tensor) -> Tensor:
    if patch_tokens.ndim != 3:
        raise ConfigError(f"patch tokens have shape {list(patch_tokens.shape)}; expected [images, tokens, width]")
    return normalize(patch_tokens.float(), dim=-1, eps=1e-8)


def _grid_distances(patch_tokens: Tensor) -> Tensor:
    """Return the Manhattan distance [N, N] of each pair of tokens on their square grid."""
    count = patch_tokens.shape[1] if patch_tokens.ndim == 3 else 0
    side = math.isqrt(count)
    if side == 0 or side * side != count:
        raise ConfigError(
            f"patch tokens have shape {list(patch_tokens.shape)}; expected [images, tokens, width] with a square "
            "number of tokens. Leave out the class token"
        )
    positions = torch.arange(count, device=patch_tokens.device)
    rows, columns = positions // side, positions % side
    return (rows[:, None] - rows).abs() + (columns[:, None] - columns).abs()


def _mean_cosines(patch_tokens: Tensor, masks: Tensor) -> Tensor:
    """Return the mean cosine [B, M] over the pairs that each of the masks [M, N, N] selects."""
    tokens = _directions(patch_tokens)
    with full_float32():
        cosines = tokens @ tokens.transpose(1, 2)
        return cosines.flatten(1) @ masks.flatten(1).to(cosines).T / masks.sum((1, 2))
