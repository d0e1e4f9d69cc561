"""Sampling latents from a VAE's posterior."""

from collections.abc import Sequence

from torch import Tensor


def sample_posterior(moments: Tensor, noise: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Sample scaled latents from posterior moments: `(mean + std * noise) * scale + bias`.

    The order of operations is fixed, since training runs are repeatable to the bit.

    Args:
        moments: mean and standard deviation [B, 2C, h, w], unscaled, of any floating dtype.
        noise: standard normal draws [B, C, h, w], float32; zeros give the mean.
        scale: latents scale, float32, broadcastable from [1, C, 1, 1].
        bias: latents bias, float32, broadcastable from [1, C, 1, 1].

    Returns:
        Latents [B, C, h, w] float32.
    """
    mean, std = moments.float().chunk(2, dim=1)
    return (mean + std * noise) * scale + bias


def with_epsilon(scale: Sequence[float], bias: Sequence[float], eps: float) -> tuple[Sequence[float], Sequence[float]]:
    """Return scale and bias with `eps` added to the variance, `1 / scale²`, of latents before they are divided by it.

    Decoding does not undo it (REPA-E, arXiv 2504.10483).
    """
    if not eps:
        return scale, bias
    smaller = [(1 + eps * factor**2) ** -0.5 for factor in scale]
    return [a * b for a, b in zip(scale, smaller, strict=True)], [a * b for a, b in zip(bias, smaller, strict=True)]
