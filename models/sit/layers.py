"""The layers of SiT, initialized as published. Attribute names are those of the published checkpoints."""

from torch import Tensor, nn

from ..layers.attention import Attention
from ..layers.feed_forward import Mlp
from ..layers.linear import linear
from ..layers.modulation import chunks, modulate, modulation
from .config import SiTConfig


class SiTBlock(nn.Module):
    """A transformer block with norms and gates modulated by the condition; initialized to the identity."""

    def __init__(self, config: SiTConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, elementwise_affine=False, eps=1e-6)
        self.attn = Attention(config.hidden_size, config.num_heads, nn.LayerNorm if config.qk_norm else None)
        self.norm2 = nn.LayerNorm(config.hidden_size, elementwise_affine=False, eps=1e-6)
        self.mlp = Mlp(config.hidden_size, int(config.hidden_size * config.mlp_ratio))
        self.adaLN_modulation = modulation(config.hidden_size, 6)

    def forward(
        self, tokens: Tensor, condition: Tensor, mask: Tensor | None = None, logits: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return tokens [B, N, D].

        Args:
            tokens: [B, N, D].
            condition: [B, D], or one per token [B, N, D].
            mask: where tokens attend, bool [B, 1, N, N]; None for everywhere.
            logits: also return the attention logits [B, heads, N, N], without which none are computed.
        """
        shift1, scale1, gate1, shift2, scale2, gate2 = chunks(self.adaLN_modulation, condition, 6)
        modulated = modulate(self.norm1(tokens), shift1, scale1)
        attended, *found = self.attn.with_logits(modulated, mask) if logits else [self.attn(modulated, mask=mask)]
        tokens = tokens + gate1 * attended
        mapped: Tensor = self.mlp(modulate(self.norm2(tokens), shift2, scale2))
        result = tokens + gate2 * mapped
        return (result, found[0]) if logits else result


class FinalLayer(nn.Module):
    """Tokens to patches of the velocity; zero-initialized."""

    def __init__(self, config: SiTConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.norm_final = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.linear = linear(width, config.patch_size**2 * config.in_channels, nn.init.zeros_)
        self.adaLN_modulation = modulation(width, 2)

    def forward(self, tokens: Tensor, condition: Tensor) -> Tensor:
        """Return patches [B, N, patch_size ** 2 * C], given tokens [B, N, D] and condition [B, D] or [B, N, D]."""
        patches: Tensor = self.linear(self.modulated(tokens, condition))
        return patches

    def modulated(self, tokens: Tensor, condition: Tensor) -> Tensor:
        """Normalize tokens, then shift and scale them by the condition."""
        shift, scale = chunks(self.adaLN_modulation, condition, 2)
        return modulate(self.norm_final(tokens), shift, scale)
