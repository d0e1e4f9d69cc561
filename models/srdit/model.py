"""SR-DiT (arXiv 2512.12386): REG's model with routed tokens (SPRINT), rotary positions, RMS norm and value residuals.

The first blocks see all tokens; the middle ones see those that are kept, a random quarter in training; a fusion of both
goes through the last blocks. Tensor names and shapes are those of the published checkpoints
(github.com/SwayStar123/SpeedrunDiT). The model draws no random numbers: the training code draws the kept tokens and
whether the path through the middle blocks is dropped.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from ..class_token import ClassTokenModel
from ..layers.embedders import LabelEmbedder, PatchEmbed, TimestepEmbedder, sincos_position_embedding, unpatchify
from ..layers.linear import linear
from ..layers.norms import RMS_NORM
from ..layers.projectors import mlp_projector
from ..layers.rotary import Rotary
from .config import SRDiTConfig
from .layers import Rotation, SRDiTBlock, SRDiTFinalLayer


class SRDiT(ClassTokenModel):
    """A diffusion transformer that maps (x_t, time, label) to the velocity and to projected tokens per encoder.

    x_t and velocity are [B, C * H * W + cls_dim]. Projected tokens are [B, 1 + N, z_dim]: the class token's first, then
    the patches'.
    """

    config: SRDiTConfig

    def __init__(self, config: SRDiTConfig) -> None:
        super().__init__()
        self.config = config
        width, grid = config.hidden_size, config.input_size // config.patch_size
        self.x_embedder = PatchEmbed(config.in_channels, config.patch_size, width)
        self.cls_projectors2 = linear(config.cls_dim, width)
        self.wg_norm = RMS_NORM(width)
        self.t_embedder = TimestepEmbedder(width)
        self.y_embedder = LabelEmbedder(config.num_classes + (config.class_dropout_prob > 0), width)
        positions = pad(sincos_position_embedding(width, grid), (0, 0, 1, 0))  # none for the class token
        self.pos_embed = nn.Parameter(positions, requires_grad=False)
        self.feat_rope = Rotary(width // config.num_heads, grid)
        self.blocks = nn.ModuleList(SRDiTBlock(config, number == 0) for number in range(config.depth))
        self.projectors = nn.ModuleList(mlp_projector(width, config.projector_dim, z_dim) for z_dim in config.z_dims)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))  # at positions that the middle blocks did not see
        self.fusion_proj = linear(2 * width, width)
        self.final_layer = SRDiTFinalLayer(config)

    @property
    def cls_dim(self) -> int:
        """Width of the class token."""
        return self.config.cls_dim

    def forward(  # noqa: PLR0917 (the first four are those of all models)
        self,
        x_t: Tensor,
        t: Tensor,
        labels: Tensor,
        project: bool = True,
        kept: Tensor | None = None,
        path_dropped: Tensor | None = None,
        uncond: bool = False,
    ) -> tuple[Tensor, list[Tensor]]:
        """Predict the velocity, and the encoders' tokens from the output of the first blocks.

        Args:
            x_t: noisy latents and class tokens [B, C * H * W + cls_dim].
            t: time [B], 0 at the data and 1 at the noise.
            labels: [B] int64; `num_classes` for no class.
            project: False to skip the projectors; the list is then empty.
            kept: [B, K] int64, the tokens that the middle blocks see, where 0 is the class token (`kept_tokens`). None
                for all.
            path_dropped: bool [B] or [], whether the output of the middle blocks is replaced. Their gradients are then
                zeros. None for never.
            uncond: replace the output of the middle blocks for all samples without computing it, the published weak
                model of guidance. Their weights have no gradients.

        Returns:
            The velocity, like x_t, and one tensor [B, 1 + N, z_dim] per entry of `config.z_dims`.
        """
        tokens, condition = self._embed(x_t, t, labels)
        rotate = self._rotation(None)
        tokens, first_values = self._run_first(tokens, condition, rotate)
        projected = [project_tokens(tokens) for project_tokens in self.projectors] if project else []
        routed = self.mask_token if uncond else self._routed(tokens, condition, first_values, kept)
        if path_dropped is not None:
            routed = torch.where(path_dropped.reshape(-1, 1, 1), self.mask_token, routed)
        tokens = self.fusion_proj(torch.cat([tokens, routed.expand_as(tokens)], dim=2))
        for block in self.blocks[-self.config.decoder_blocks :]:
            tokens, _ = self._run(block, tokens, condition, rotate, first_values)
        patches, cls_velocity = self.final_layer(tokens, condition)
        return self.pack(unpatchify(patches, self.config.patch_size), cls_velocity), projected

    def _embed(self, x_t: Tensor, t: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return tokens [B, 1 + N, D] and condition [B, D]."""
        latents, cls_token = self.unpack(x_t)
        first = self.wg_norm(self.cls_projectors2(cls_token)).unsqueeze(1)
        tokens = torch.cat([first, self.x_embedder(latents)], dim=1) + self.pos_embed
        return tokens, self.t_embedder(t, tokens.dtype) + self.y_embedder(labels)

    def _run_first(self, tokens: Tensor, condition: Tensor, rotate: Rotation) -> tuple[Tensor, Tensor]:
        """Run the first blocks; return tokens and the values of the first block [B, heads, 1 + N, head width]."""
        first, *others = self.blocks[: self.config.encoder_blocks]
        tokens, first_values = self._run(first, tokens, condition, rotate)
        for block in others:
            tokens, _ = self._run(block, tokens, condition, rotate, first_values)
        return tokens, first_values

    def _routed(self, tokens: Tensor, condition: Tensor, first_values: Tensor, kept: Tensor | None) -> Tensor:
        """Run the middle blocks on the kept tokens; return [B, 1 + N, D] with mask tokens at the other positions."""
        sparse, rotate = tokens, self._rotation(kept)
        if kept is not None:
            sparse = tokens.take_along_dim(kept[:, :, None], dim=1)
            first_values = first_values.take_along_dim(kept[:, None, :, None], dim=2)
        for block in self.blocks[self.config.encoder_blocks : -self.config.decoder_blocks]:
            sparse, _ = self._run(block, sparse, condition, rotate, first_values)
        if kept is None:
            return sparse
        masked = self.mask_token.to(sparse.dtype).expand_as(tokens)
        return masked.scatter(1, kept[:, :, None].expand_as(sparse), sparse)

    def _rotation(self, kept: Tensor | None) -> Rotation:
        """Return the rotation of the kept tokens; the class token is not rotated."""
        tokens = torch.arange(self.num_tokens, device=self.pos_embed.device) if kept is None else kept
        return self.feat_rope.at(grid_positions(tokens))

    @property
    def num_tokens(self) -> int:
        """Number of patches plus the class token."""
        return int(self.pos_embed.shape[1])


def grid_positions(tokens: Tensor) -> Tensor:
    """Return the positions in the grid of tokens [..., N] int64, where 0 is the class token, which is not rotated."""
    return (tokens - 1).clamp(min=0)


def kept_tokens(uniform: Tensor, drop_ratio: float) -> Tensor:
    """Return the tokens that the middle blocks see, those with the smallest draws.

    Args:
        uniform: draws [B, T], one per token.
        drop_ratio: fraction of the tokens that are dropped; at least one is kept.

    Returns:
        [B, K] int64, in the order of their draws.
    """
    count = max(1, int(uniform.shape[1] * (1 - drop_ratio)))
    return uniform.argsort(dim=1, stable=True)[:, :count]
