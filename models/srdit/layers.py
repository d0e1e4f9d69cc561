"""The layers of SR-DiT. Attribute names are those of the published checkpoints."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..layers.attention import Attention
from ..layers.feed_forward import Mlp
from ..layers.linear import linear
from ..layers.modulation import chunks, modulate, modulation
from ..layers.norms import PLAIN_RMS_NORM, RMSNorm
from .config import SRDiTConfig

Rotation = Callable[[Tensor], Tensor]


class ValueResidualAttention(Attention):
    """Self-attention whose values are mixed with those of the first block (arXiv 2410.17897)."""

    def __init__(self, width: int, num_heads: int, norm: Callable[[int], nn.Module] | None = None) -> None:
        super().__init__(width, num_heads, norm)
        self.v1_lambda = nn.Parameter(torch.tensor(0.5))  # the weight of the first block's values

    def mixed(self, value: Tensor, first_values: Tensor) -> Tensor:
        """Return values [B, heads, N, head width], given this block's own and the first block's."""
        return self.v1_lambda * first_values + (1 - self.v1_lambda) * value


class SRDiTBlock(nn.Module):
    """A transformer block with norms and gates modulated by the condition; initialized to the identity.

    Args:
        config: the sizes.
        is_first: the block provides the values that the later ones mix with theirs.
    """

    def __init__(self, config: SRDiTConfig, is_first: bool) -> None:
        super().__init__()
        width = config.hidden_size
        attention = Attention if is_first else ValueResidualAttention
        self.norm1 = PLAIN_RMS_NORM(width)
        self.attn = attention(width, config.num_heads, RMSNorm if config.qk_norm else None)
        self.norm2 = PLAIN_RMS_NORM(width)
        self.mlp = Mlp(width, int(width * config.mlp_ratio))
        self.adaLN_modulation = modulation(width, 6)

    def forward(
        self, tokens: Tensor, condition: Tensor, rotate: Rotation, first_values: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return tokens [B, N, D] and the block's own values [B, heads, N, head width].

        Args:
            tokens: [B, N, D].
            condition: [B, D].
            rotate: applied to queries and keys.
            first_values: those that the first block returned, for these tokens; None in the first block.
        """
        shift1, scale1, gate1, shift2, scale2, gate2 = chunks(self.adaLN_modulation, condition, 6)
        query, key, value = self.attn.heads(modulate(self.norm1(tokens), shift1, scale1))
        mixed = value
        if isinstance(self.attn, ValueResidualAttention):
            assert first_values is not None
            mixed = self.attn.mixed(value, first_values)
        tokens = tokens + gate1 * self.attn.attend(query, key, mixed, rotate)
        mapped: Tensor = self.mlp(modulate(self.norm2(tokens), shift2, scale2))
        return tokens + gate2 * mapped, value


class SRDiTFinalLayer(nn.Module):
    """Tokens [B, 1 + N, D] to patches of the velocity and to the class token's velocity; zero-initialized."""

    def __init__(self, config: SRDiTConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.norm_final = PLAIN_RMS_NORM(width)
        self.linear = linear(width, config.patch_size**2 * config.in_channels, nn.init.zeros_)
        self.linear_cls = linear(width, config.cls_dim, nn.init.zeros_)
        self.adaLN_modulation = modulation(width, 2)

    def forward(self, tokens: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Return patches [B, N, patch_size ** 2 * C] and the class token's velocity [B, cls_dim]."""
        shift, scale = chunks(self.adaLN_modulation, condition, 2)
        modulated = modulate(self.norm_final(tokens), shift, scale)
        return self.linear(modulated[:, 1:]), self.linear_cls(modulated[:, 0])
