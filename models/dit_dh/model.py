"""DiT-DH (RAE, arXiv 2510.11690): a deep, narrow encoder and a shallow, wide head, both reading the noisy latents.

Tensor names and shapes are those of the published checkpoints (github.com/bytetriper/RAE, `stage2/models/DDT.py`).
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import silu

from ..diffusion_model import DiffusionModel
from ..layers.block import BlockOptions, DiTBlock, DiTFinalLayer
from ..layers.embedders import FourierTimeEmbedder, LabelEmbedder, PatchEmbed, sincos_position_embedding, unpatchify
from ..layers.linear import linear
from ..layers.rotary import Rotary
from .config import DiTDHConfig


class DiTDH(DiffusionModel):
    """A diffusion transformer that maps (x_t, time, label) to the velocity, noise - data.

    All parameters are trained as published: also the position embedding and the frequencies of the time embedding.
    There are no projectors.
    """

    config: DiTDHConfig

    def __init__(self, config: DiTDHConfig) -> None:
        super().__init__()
        self.config = config
        (narrow, wide), (depth, head_depth) = config.hidden_size, config.depth
        heads, grid = config.num_heads, config.input_size // config.patch_size
        options = BlockOptions.of(config)
        self.s_embedder = PatchEmbed(config.in_channels, config.patch_size, narrow)
        self.x_embedder = PatchEmbed(config.in_channels, config.patch_size, wide)
        self.s_projector = linear(narrow, wide) if narrow != wide else nn.Identity()
        self.t_embedder = FourierTimeEmbedder(narrow)
        self.y_embedder = LabelEmbedder(config.num_classes + (config.class_dropout_prob > 0), narrow)
        if config.use_pos_embed:
            self.pos_embed = nn.Parameter(sincos_position_embedding(narrow, grid))
        self.enc_feat_rope = Rotary(narrow // heads[0], grid) if config.use_rope else None
        self.dec_feat_rope = Rotary(wide // heads[1], grid) if config.use_rope else None
        self.blocks = nn.ModuleList(
            [DiTBlock(narrow, heads[0], options) for _ in range(depth)]
            + [DiTBlock(wide, heads[1], options) for _ in range(head_depth)]
        )
        self.projectors = nn.ModuleList()
        self.final_layer = DiTFinalLayer(wide, config.patch_size**2 * config.in_channels, config.use_rmsnorm)

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
        time = self.t_embedder(t, x_t.dtype)
        condition = silu(time.unsqueeze(1) + self.encode(x_t, time, labels))
        condition = self.s_projector(condition)
        tokens = self.x_embedder(x_t)
        for block in self.blocks[self.config.depth[0] :]:
            tokens = self._run(block, tokens, condition, self.dec_feat_rope)
        return unpatchify(self.final_layer(tokens, condition), self.config.patch_size), []

    def encode(self, x_t: Tensor, time: Tensor, labels: Tensor) -> Tensor:
        """Return the tokens [B, N, D] after the encoder's last block, for embedded times [B, D]."""
        tokens: Tensor = self.s_embedder(x_t)
        if self.config.use_pos_embed:
            tokens = tokens + self.pos_embed
        condition = silu(time + self.y_embedder(labels))
        for block in self.blocks[: self.config.depth[0]]:
            tokens = self._run(block, tokens, condition, self.enc_feat_rope)
        return tokens
