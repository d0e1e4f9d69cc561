"""The latents of a VAE, drawn from the stored posterior in every step (REPA)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from ...diffusion.posterior import sample_posterior
from ...stores import Batch
from .space import Space


class MomentsSpace(Space):
    """Latents `(mean + std · noise) · scale + bias`, with one scale and one bias per channel."""

    draws_posterior: ClassVar[bool] = True
    scale: Tensor
    bias: Tensor

    def __init__(self, scale: Sequence[float], bias: Sequence[float]) -> None:
        super().__init__()
        for name, values in (("scale", scale), ("bias", bias)):
            self.register_buffer(name, torch.tensor(values).reshape(1, -1, 1, 1), persistent=False)

    def stored(self, batch: Batch) -> Tensor:
        """Return the moments `[B, 2C, h, w]`."""
        assert batch.moments is not None
        return batch.moments

    def shape(self, stored: Tensor) -> tuple[int, ...]:
        """Return half of the channels, and the sides."""
        return (stored.shape[1] // 2, *stored.shape[2:])

    def data(self, stored: Tensor, posterior: Tensor | None) -> Tensor:
        """Draw from the posterior and scale."""
        assert posterior is not None
        return sample_posterior(stored, posterior, self.scale, self.bias)
