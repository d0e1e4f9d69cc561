"""RAEv2's transformer: conditions are tokens, both its heads predict the data (arXiv 2605.18324).

Tensor names and shapes are those of the published checkpoints (github.com/nanovisionx/RAEv2, `stage2/models/DDT.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from ..diffusion_model import DiffusionModel, velocity_from_data
from ..layers.embedders import PatchEmbed, unpatchify
from ..layers.linear import linear
from ..layers.rotary import Rotary
from .config import RAEv2Config
from .layers import Block, ClassEmbedder, FinalLayer, TimeEmbedder


class Prediction(NamedTuple):
    """What a model predicts."""

    data: Tensor  # [B, C, H, W]
    base: Tensor  # [B, C, H, W], of the head inside the encoder, for internal guidance
    projected: Tensor | None  # [B, N, z_dim]; None without a projector


BASE = "base_velocity"


class RAEv2(DiffusionModel):
    """A diffusion transformer that predicts the data, from which the velocity follows.

    Its tap `base_velocity` is the velocity of the base head, inside the encoder; it guides the model in sampling.
    """

    config: RAEv2Config

    def __init__(self, config: RAEv2Config) -> None:
        super().__init__()
        self.config = config
        (narrow, wide), (depth, head_depth) = config.hidden_size, config.depth
        heads, grid = config.num_heads, config.input_size // config.patch_size
        outputs = config.patch_size**2 * config.in_channels
        self.s_embedder = PatchEmbed(config.in_channels, config.patch_size, narrow)
        self.x_embedder = PatchEmbed(config.in_channels, config.patch_size, wide)
        self.s_projector = linear(narrow, wide) if narrow != wide else nn.Identity()
        self.t_embedder = TimeEmbedder(narrow, config.num_t_tokens)
        self.ctx_embedder = ClassEmbedder(config.num_classes + 1, narrow, config.num_c_tokens)
        self._patches = grid**2
        self.enc_rope = Rotary(narrow // heads[0], grid, config.num_t_tokens + config.num_c_tokens)
        self.dec_rope = Rotary(wide // heads[1], grid)
        self.blocks = nn.ModuleList(
            [Block(narrow, heads[0], config.mlp_ratio, modulated=False) for _ in range(depth)]
            + [Block(wide, heads[1], config.mlp_ratio, modulated=True) for _ in range(head_depth)]
        )
        self.base_final_layer = FinalLayer(narrow, outputs)
        self.final_layer = FinalLayer(wide, outputs)
        if config.repa_layer_depth:
            self.repa_projector = linear(narrow, config.z_dim)

    @property
    def taps(self) -> tuple[str, ...]:
        """The velocity of the base head."""
        return (BASE,)

    @property
    def projectors(self) -> nn.ModuleList:  # type: ignore[override]
        """The projector, if any: one linear layer under its published name."""
        return nn.ModuleList([self.repa_projector] if self.config.repa_layer_depth else [])

    def forward(
        self, x_t: Tensor, t: Tensor, labels: Tensor, project: bool = True, taps: Sequence[str] = ()
    ) -> tuple[Any, ...]:
        """Predict the velocity noise - data, and patch tokens.

        Args:
            x_t: noisy latents [B, C, H, W].
            t: time [B], 0 at the data and 1 at the noise.
            labels: [B] int64; `num_classes` for no class.
            project: False to return no patch tokens.
            taps: `base_velocity`, or nothing.

        Returns:
            The velocity [B, C, H, W]; the projected tokens [B, N, z_dim] in a list, empty without a projector; and
            `{"base_velocity": [B, C, H, W]}` if asked for.
        """
        data, base, projected = self.predict(x_t, t, labels)
        velocity = velocity_from_data(x_t, data, t, self.config.t_eps)
        tokens = [projected] if project and projected is not None else []
        if not taps:
            return velocity, tokens
        return velocity, tokens, {BASE: velocity_from_data(x_t, base, t, self.config.t_eps)}

    def target(self, x_t: Tensor, velocity: Tensor, data: Tensor, t: Tensor) -> Tensor:
        """Return the velocity that follows from the data as it does from predicted data, also at times near 0."""
        return velocity_from_data(x_t, data, t, self.config.t_eps)

    def predict(self, x_t: Tensor, t: Tensor, labels: Tensor) -> Prediction:
        """Predict the data, with both heads.

        Args:
            x_t: noisy latents [B, C, H, W].
            t: time [B], 0 at the data and 1 at the noise.
            labels: [B] int64; `num_classes` for no class.
        """
        side = self.config.patch_size
        time = self.t_embedder(t, x_t.dtype)
        sequence, base, projected = self.encode(x_t, time, labels)
        condition = self.s_projector(self._timed(sequence, time))
        tokens = self.x_embedder(x_t)
        for block in self.blocks[self.config.depth[0] :]:
            tokens = self._run(block, tokens, condition, self.dec_rope)
        data = unpatchify(self.final_layer(tokens, condition), side)
        return Prediction(data, unpatchify(self.base_final_layer(base, base), side), projected)

    def encode(self, x_t: Tensor, time: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Run the encoder.

        Args:
            x_t: noisy latents [B, C, H, W].
            time: embedded times [B, D].
            labels: [B] int64.

        Returns:
            The tokens after its last block, patches before those of time and label; the input of the base head
            [B, N, D]; and the projected tokens [B, N, z_dim], or None without a projector.
        """
        sequence = torch.cat([self.s_embedder(x_t), self.condition_tokens(time, labels)], dim=1)
        base, projected = sequence, None
        for number, block in enumerate(self.blocks[: self.config.depth[0]], start=1):
            sequence = self._run(block, sequence, None, self.enc_rope)
            if number == self.config.base_model_depth:
                base = self._timed(sequence, time)
            if number == self.config.repa_layer_depth:
                projected = self.repa_projector(sequence[:, : self._patches])
        return sequence, base, projected

    def _timed(self, sequence: Tensor, time: Tensor) -> Tensor:
        """Return the tokens of the patches with the time added, activated: what heads are conditioned on."""
        return silu(time.unsqueeze(1) + sequence[:, : self._patches])

    def condition_tokens(self, time: Tensor, labels: Tensor) -> Tensor:
        """Return the tokens of times [B, D] and labels [B], one group after the other."""
        of_time = time.unsqueeze(1) + self.t_embedder.learnable_tokens
        of_label = self.ctx_embedder(labels).unsqueeze(1) + self.ctx_embedder.learnable_tokens
        return torch.cat([of_time, of_label], dim=1)
