"""JiT: a transformer on large patches of pixels that predicts the image itself (arXiv 2511.13720).

Tensor names and shapes are those of the published checkpoints (github.com/LTH14/JiT; with projectors,
github.com/End2End-Diffusion/iREPA, `jit`), without the prefix `net.`.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from ..diffusion_model import DiffusionModel, velocity_from_data
from ..layers.block import BlockOptions, DiTBlock, DiTFinalLayer
from ..layers.embedders import (
    BottleneckPatchEmbed,
    LabelEmbedder,
    TimestepEmbedder,
    sincos_position_embedding,
    unpatchify,
)
from ..layers.linear import small_normal
from ..layers.projectors import make_projector
from ..layers.rotary import Rotary
from .config import JiTConfig


class JiT(DiffusionModel):
    """A transformer that predicts the image, from which the velocity follows.

    After `in_context_start` blocks, `in_context_len` tokens of the label join the patches. The published code
    can also drop activations; this one does not.
    """

    config: JiTConfig
    guides_each_evaluation: ClassVar[bool] = True

    def __init__(self, config: JiTConfig) -> None:
        super().__init__()
        self.config = config
        width, grid = config.hidden_size, config.input_size // config.patch_size
        head_width, tokens = width // config.num_heads, config.in_context_len
        options = BlockOptions(mlp_ratio=config.mlp_ratio, use_qknorm=True)
        self._patches = grid**2
        self.x_embedder = BottleneckPatchEmbed(config.in_channels, config.patch_size, config.bottleneck_dim, width)
        self.t_embedder = TimestepEmbedder(width)
        self.y_embedder = LabelEmbedder(config.num_classes + 1, width)
        self.pos_embed = nn.Parameter(sincos_position_embedding(width, grid), requires_grad=False)
        if tokens:
            self.in_context_posemb = nn.Parameter(small_normal(torch.empty(1, tokens, width)))
        self.feat_rope = Rotary(head_width, grid, persistent=False)
        self.feat_rope_incontext = Rotary(head_width, grid, tokens, persistent=False)
        self.blocks = nn.ModuleList(DiTBlock(width, config.num_heads, options) for _ in range(config.depth))
        self.projectors = nn.ModuleList(make_projector(config, z_dim) for z_dim in config.z_dims)
        self.final_layer = DiTFinalLayer(width, config.patch_size**2 * config.in_channels)

    @property
    def noise_scale(self) -> float:
        """Standard deviation of the noise at time 1."""
        return self.config.noise_scale

    def forward(self, x_t: Tensor, t: Tensor, labels: Tensor, project: bool = True) -> tuple[Tensor, list[Tensor]]:
        """Predict the velocity noise - data, and patch tokens.

        Args:
            x_t: noisy images [B, C, H, W], with data from -1 to 1 and noise of standard deviation `noise_scale`.
            t: time [B], 0 at the data and 1 at the noise.
            labels: [B] int64; `num_classes` for no class.
            project: False to skip the projectors; the list is then empty.

        Returns:
            The velocity [B, C, H, W], and one tensor [B, N, z_dim] per entry of `config.z_dims`.
        """
        data, projected = self.predict(x_t, t, labels, project)
        return velocity_from_data(x_t, data, t, self.config.t_eps), projected

    def target(self, x_t: Tensor, velocity: Tensor, data: Tensor, t: Tensor) -> Tensor:
        """Return the velocity that follows from the data as it does from predicted data, also at times near 0."""
        return velocity_from_data(x_t, data, t, self.config.t_eps)

    def predict(self, x_t: Tensor, t: Tensor, labels: Tensor, project: bool = True) -> tuple[Tensor, list[Tensor]]:
        """Predict the image [B, C, H, W], and patch tokens; arguments are those of `forward`."""
        tokens = self.x_embedder(x_t) + self.pos_embed
        label = self.y_embedder(labels)
        condition = self.t_embedder(1 - t, tokens.dtype) + label  # published times are 1 at the data
        rotary, projected = self.feat_rope, []
        for number, block in enumerate(self.blocks):
            if number == self.config.in_context_start and self.config.in_context_len:
                # Published: before the patches. Attention does not depend on the order of tokens.
                tokens = torch.cat([tokens, label.unsqueeze(1) + self.in_context_posemb], dim=1)
                rotary = self.feat_rope_incontext
            tokens = self._run(block, tokens, condition, rotary)
            if project and number + 1 == self.config.encoder_depth:
                projected = [project_tokens(tokens[:, : self._patches]) for project_tokens in self.projectors]
        patches = self.final_layer(tokens[:, : self._patches], condition)
        return unpatchify(patches, self.config.patch_size), projected
