"""Modulation of tokens by a condition (adaLN-zero, arXiv 2212.09748)."""

from torch import Tensor, nn

from .linear import linear


def modulation(width: int, parts: int) -> nn.Sequential:
    """Build the map from condition [..., D] to shifts, scales and gates [..., parts * D], zero-initialized."""
    return nn.Sequential(nn.SiLU(), linear(width, parts * width, nn.init.zeros_))


def chunks(modulation: nn.Module, condition: Tensor, parts: int) -> tuple[Tensor, ...]:
    """Return the parts of a modulation, each [B, 1, D] for a condition [B, D], or [B, N, D] for one per token."""
    values: Tensor = modulation(condition)
    return (values if values.ndim == 3 else values.unsqueeze(1)).chunk(parts, dim=-1)


def modulate(tokens: Tensor, shift: Tensor | float, scale: Tensor) -> Tensor:
    """Return tokens [B, N, D], scaled by 1 + `scale` and shifted."""
    return tokens * (1 + scale) + shift
