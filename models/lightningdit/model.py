"""LightningDiT (arXiv 2501.01423): DiT with RMS norm, SwiGLU and rotary positions.

Tensor names and shapes are those of the published checkpoints (github.com/hustvl/LightningDiT).
"""

from __future__ import annotations

from torch import Tensor, nn

from ..diffusion_model import DiffusionModel
from ..layers.block import BlockOptions, DiTBlock, DiTFinalLayer
from ..layers.embedders import LabelEmbedder, PatchEmbed, TimestepEmbedder, sincos_position_embedding, unpatchify
from ..layers.rotary import Rotary
from .config import LightningDiTConfig


class LightningDiT(DiffusionModel):
    """A diffusion transformer that maps (x_t, time, label) to the velocity. There are no projectors."""

    config: LightningDiTConfig

    def __init__(self, config: LightningDiTConfig) -> None:
        super().__init__()
        self.config = config
        width, grid = config.hidden_size, config.input_size // config.patch_size
        options = BlockOptions.of(config)
        self.x_embedder = PatchEmbed(config.in_channels, config.patch_size, width)
        self.t_embedder = TimestepEmbedder(width)
        self.y_embedder = LabelEmbedder(config.num_classes + (config.class_dropout_prob > 0), width)
        self.pos_embed = nn.Parameter(sincos_position_embedding(width, grid), requires_grad=False)
        self.feat_rope = Rotary(width // config.num_heads, grid) if config.use_rope else None
        self.blocks = nn.ModuleList(DiTBlock(width, config.num_heads, options) for _ in range(config.depth))
        self.projectors = nn.ModuleList()
        self.final_layer = DiTFinalLayer(width, config.patch_size**2 * config.in_channels, config.use_rmsnorm)

    def forward(self, x_t: Tensor, t: Tensor, labels: Tensor, project: bool = True) -> tuple[Tensor, list[Tensor]]:
        """Predict the velocity noise - data, [B, C, H, W].

        Args:
            x_t: noisy latents [B, C, H, W].
            t: time [B], 0 at the data and 1 at the noise.
            labels: [B] int64; `num_classes` for no class.
            project: without effect.

        Returns:
            The velocity, and an empty list.
        """
        t = 1 - t  # published: 0 at the noise, and the velocity data - noise
        tokens = self.x_embedder(x_t) + self.pos_embed
        condition = self.t_embedder(t, tokens.dtype) + self.y_embedder(labels)
        for block in self.blocks:
            tokens = self._run(block, tokens, condition, self.feat_rope)
        return -unpatchify(self.final_layer(tokens, condition), self.config.patch_size), []
