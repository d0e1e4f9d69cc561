"""What models that denoise an encoder's class token together with the latents have in common (REG, arXiv 2507.01467).

Samplers and guidance work unchanged, since the state is one vector per sample: latents and class token concatenated.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .diffusion_model import DiffusionModel


class ClassTokenModel(DiffusionModel):
    """A model whose x_t and velocity are [B, C * H * W + cls_dim]."""

    pos_embed: nn.Parameter

    @property
    def state_shape(self) -> tuple[int, ...]:
        """Shape of one sample of x_t: latents and class token in one vector."""
        return (self._latents_size + self.cls_dim,)

    @property
    def cls_dim(self) -> int:
        """Width of the class token."""
        raise NotImplementedError

    def latents_of(self, state: Tensor) -> Tensor:
        """Return the latents [B, C, H, W] of a state."""
        return self.unpack(state)[0]

    def pack(self, latents: Tensor, cls_token: Tensor) -> Tensor:
        """Concatenate latents [B, C, H, W] and class tokens [B, cls_dim] to one state [B, C * H * W + cls_dim]."""
        return torch.cat([latents.flatten(1), cls_token], dim=1)

    def unpack(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """Split a state or a velocity into latents [B, C, H, W] and class tokens [B, cls_dim]."""
        latents, cls_token = state.split([self._latents_size, state.shape[1] - self._latents_size], dim=1)
        return latents.unflatten(1, self.latents_shape), cls_token

    def guidance_scales(self, scale: float, cls_scale: float) -> Tensor:
        """Return the guidance scale of every element of a state, [1, C * H * W + cls_dim].

        A `cls_scale` of 0 or less stands for no guidance, as in the published programs.
        """
        like = self.pos_embed
        cls_scales = like.new_full((1, self.cls_dim), cls_scale if cls_scale > 0 else 1.0)
        return torch.cat([like.new_full((1, self._latents_size), scale), cls_scales], dim=1)

    @property
    def _latents_size(self) -> int:
        return math.prod(self.latents_shape)
