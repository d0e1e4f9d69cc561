"""Self-attention with queries, keys and values from one matrix."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from .linear import linear


class Attention(nn.Module):
    """Multi-head self-attention over tokens [B, N, D].

    Args:
        width: channels of a token.
        num_heads: number of heads.
        norm: builds the norm of queries and keys over a head's channels, applied before rotation; None for no norm.
    """

    def __init__(self, width: int, num_heads: int, norm: Callable[[int], nn.Module] | None = None) -> None:
        super().__init__()
        self.num_heads, self.head_width = num_heads, width // num_heads
        self.qkv = linear(width, 3 * width)
        self.q_norm = norm(self.head_width) if norm else nn.Identity()
        self.k_norm = norm(self.head_width) if norm else nn.Identity()
        self.proj = linear(width, width)

    def forward(
        self, tokens: Tensor, rotate: Callable[[Tensor], Tensor] | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Return tokens [B, N, D].

        Args:
            tokens: [B, N, D].
            rotate: is applied to queries and keys.
            mask: bool [B, 1, N, N], true where a token attends to another; None for everywhere.
        """
        return self.attend(*self.heads(tokens), rotate, mask)

    def with_logits(self, tokens: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return what `forward` returns, and the attention logits [B, heads, N, N] before any mask."""
        query, key, value = self.heads(tokens)
        return self.attend(query, key, value, mask=mask), attention_logits(self.q_norm(query), self.k_norm(key))

    def heads(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values, each [B, heads, N, head width]."""
        batch, count, _ = tokens.shape
        qkv = self.qkv(tokens).reshape(batch, count, 3, self.num_heads, self.head_width)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return query, key, value

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        rotate: Callable[[Tensor], Tensor] | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Return the tokens [B, N, D] of queries, keys and values; `rotate` and `mask` as in `forward`."""
        query, key = self.q_norm(query), self.k_norm(key)
        if rotate is not None:
            query, key = rotate(query), rotate(key)
        mixed = scaled_dot_product_attention(query, key, value, mask)
        result: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return result


def attention_logits(query: Tensor, key: Tensor) -> Tensor:
    """Return `(q / sqrt(d)) kᵀ` [..., N, M] of queries [..., N, d] and keys [..., M, d], in front of the softmax."""
    scaled = query * query.shape[-1] ** -0.5
    return torch.matmul(scaled, key.mT)
