"""Normalization of latents by recorded statistics, and back."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Normalization:
    """`(x - mean) / sqrt(var + eps)`, and its inverse as the program does it that published the statistics.

    Statistics broadcast against latents [B, C, h, w]: per channel [C, 1, 1], per position [C, h, w], or scalars.
    """

    mean: Tensor
    var: Tensor
    eps: float = 0.0  # 1e-5 in RAE, 1e-4 in REPA-E
    eps_when_restoring: bool = True  # False in REPA-E, whose two directions are therefore not exactly inverse

    def normalize(self, latents: Tensor) -> Tensor:
        """Return normalized latents [B, C, h, w]."""
        return (latents - self.mean) / (self.var + self.eps).sqrt()

    def restore(self, normalized: Tensor) -> Tensor:
        """Return the latents [B, C, h, w] that a decoder expects."""
        eps = self.eps if self.eps_when_restoring else 0.0
        return normalized * (self.var + eps).sqrt() + self.mean
