"""The layers of RAEv2's transformer: queries, keys, values and the parts of SwiGLU are matrices of their own."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, silu

from ..layers.embedders import FourierTimeEmbedder, LabelEmbedder
from ..layers.feed_forward import swiglu_width
from ..layers.linear import linear, small_normal
from ..layers.modulation import chunks, modulate, modulation
from ..layers.norms import RMS_NORM
from ..layers.rotary import Rotary


class TimeEmbedder(FourierTimeEmbedder):
    """The time embedding, and the tokens [T, D] that it is added to."""

    def __init__(self, width: int, tokens: int) -> None:
        super().__init__(width)
        self.learnable_tokens = _learnable_tokens(tokens, width)


class ClassEmbedder(LabelEmbedder):
    """The label embedding, and the tokens [T, D] that it is added to."""

    def __init__(self, rows: int, width: int, tokens: int) -> None:
        super().__init__(rows, width)
        self.learnable_tokens = _learnable_tokens(tokens, width)


def _learnable_tokens(count: int, width: int) -> nn.Parameter:
    tokens = nn.Parameter(torch.empty(count, width))
    small_normal(tokens.data)
    return tokens


class Attention(nn.Module):
    """Multi-head self-attention over tokens [B, N, D]; queries and keys are normalized, then rotated."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q, self.k, self.v = (linear(width, width) for _ in range(3))
        self.q_norm, self.k_norm = (RMS_NORM(width // num_heads) for _ in range(2))
        self.proj = linear(width, width)

    def forward(self, tokens: Tensor, rotary: Rotary) -> Tensor:
        """Return tokens [B, N, D]."""
        query, key, value = (
            each(tokens).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for each in (self.q, self.k, self.v)
        )
        mixed = scaled_dot_product_attention(rotary(self.q_norm(query)), rotary(self.k_norm(key)), value)
        result: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return result


class SwiGLU(nn.Module):
    """`w3(silu(w1 x) * w2 x)` (arXiv 2002.05202)."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.w1, self.w2 = linear(width, inner), linear(width, inner)
        self.w3 = linear(inner, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return tokens [B, N, D]."""
        result: Tensor = self.w3(silu(self.w1(tokens)) * self.w2(tokens))
        return result


class Block(nn.Module):
    """A transformer block; in the head, a condition per token modulates it."""

    def __init__(self, width: int, num_heads: int, mlp_ratio: float, modulated: bool) -> None:
        super().__init__()
        self.norm1 = RMS_NORM(width)
        self.attn = Attention(width, num_heads)
        self.norm2 = RMS_NORM(width)
        self.mlp = SwiGLU(width, swiglu_width(width, mlp_ratio))
        if modulated:
            self.adaln_modulation = modulation(width, 6)

    def forward(self, tokens: Tensor, condition: Tensor | None, rotary: Rotary) -> Tensor:
        """Return tokens [B, N, D], given the condition [B, N, D] of a modulated block."""
        result: Tensor
        if condition is None:
            tokens = tokens + self.attn(self.norm1(tokens), rotary)
            result = tokens + self.mlp(self.norm2(tokens))
        else:
            shift1, scale1, gate1, shift2, scale2, gate2 = chunks(self.adaln_modulation, condition, 6)
            tokens = tokens + gate1 * self.attn(modulate(self.norm1(tokens), shift1, scale1), rotary)
            result = tokens + gate2 * self.mlp(modulate(self.norm2(tokens), shift2, scale2))
        return result


class FinalLayer(nn.Module):
    """Tokens [B, N, D] to patches [B, N, outputs]; zero-initialized."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.norm = RMS_NORM(width)
        self.linear = linear(width, outputs, nn.init.zeros_)
        self.adaln_modulation = modulation(width, 2)

    def forward(self, tokens: Tensor, condition: Tensor) -> Tensor:
        """Return patches, given a condition [B, N, D]."""
        shift, scale = chunks(self.adaln_modulation, condition, 2)
        patches: Tensor = self.linear(modulate(self.norm(tokens), shift, scale))
        return patches
