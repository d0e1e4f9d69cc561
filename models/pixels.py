"""Pixels as latents: the images themselves, which need no autoencoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import NonFiniteError
from .precision import rows_not_finite
from .vae_files import PIXELS_BIAS, PIXELS_SCALE


@dataclass(frozen=True, slots=True)
class Pixels:
    """Stands in for a `Vae`: latents are levels from 0 to 255, which are scaled to [-1, 1]."""

    name: ClassVar[str] = "pixels"
    latent_channels: ClassVar[int] = 3
    downsampling: ClassVar[int] = 1
    is_fixed: ClassVar[bool] = True
    latents_scale: tuple[float, ...] = PIXELS_SCALE
    latents_bias: tuple[float, ...] = PIXELS_BIAS

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What the latents depend on: nothing."""
        return {"architecture": "pixels", "preprocessing": "none"}

    def with_scale(self, scale: Sequence[float], bias: Sequence[float]) -> Pixels:
        """Return pixels with another scale and bias per channel."""
        return replace(self, latents_scale=tuple(map(float, scale)), latents_bias=tuple(map(float, bias)))

    def decode(self, latents: Tensor) -> Tensor:
        """Return scaled latents [B, 3, R, R] as images, uint8, with rounded levels.

        Raises:
            NonFiniteError: latents are NaN or infinite.
        """
        scale, bias = (
            torch.tensor(values, device=latents.device).view(1, -1, 1, 1)
            for values in (self.latents_scale, self.latents_bias)
        )
        levels = (latents.float() - bias) / scale
        if broken := rows_not_finite(levels):
            raise NonFiniteError(
                f"{len(broken)} of {len(levels)} latents are NaN or infinite, first number {broken[0]}"
            )
        return levels.round().clamp(0, 255).to(torch.uint8)
