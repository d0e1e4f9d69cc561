"""Latents that were drawn once, when they were computed, or that have no distribution to draw from (LightningDiT)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from ...stores import Batch
from .space import Space


class FixedSpace(Space):
    """Latents `stored · scale + bias`, with one scale and one bias per channel."""

    draws_posterior: ClassVar[bool] = False
    scale: Tensor
    bias: Tensor

    def __init__(self, scale: Sequence[float], bias: Sequence[float]) -> None:
        super().__init__()
        for name, values in (("scale", scale), ("bias", bias)):
            self.register_buffer(name, torch.tensor(values).reshape(-1, 1, 1), persistent=False)

    def stored(self, batch: Batch) -> Tensor:
        """Return the stored latents `[B, C, h, w]`."""
        assert batch.fixed_latents is not None
        return batch.fixed_latents

    def shape(self, stored: Tensor) -> tuple[int, ...]:
        """Return channels and sides."""
        return tuple(stored.shape[1:])

    def data(self, stored: Tensor, posterior: Tensor | None) -> Tensor:
        """Scale."""
        return stored.float() * self.scale + self.bias
