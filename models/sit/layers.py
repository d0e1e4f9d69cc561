"""The layers of SiT, initialized as published. Attribute names are those of the published checkpoints."""

from torch import Tensor, nn

from ..layers.attention import Attention
from ..layers.feed_forward import Mlp, projector
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

    def forward(self, tokens: Tensor, condition: Tensor) -> Tensor:
        """Return tokens [B, N, D], given tokens [B, N, D] and condition [B, D]."""
        shift1, scale1, gate1, shift2, scale2, gate2 = chunks(self.adaLN_modulation, condition, 6)
        attended: Tensor = self.attn(modulate(self.norm1(tokens), shift1, scale1))
        tokens = tokens + gate1 * attended
        mapped: Tensor = self.mlp(modulate(self.norm2(tokens), shift2, scale2))
        return tokens + gate2 * mapped


class FinalLayer(nn.Module):
    """Tokens to patches of the velocity; zero-initialized."""

    def __init__(self, config: SiTConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.norm_final = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.linear = linear(width, config.patch_size**2 * config.in_channels, nn.init.zeros_)
        self.adaLN_modulation = modulation(width, 2)

    def forward(self, tokens: Tensor, condition: Tensor) -> Tensor:
        """Return patches [B, N, patch_size ** 2 * C], given tokens [B, N, D] and condition [B, D]."""
        patches: Tensor = self.linear(self.modulated(tokens, condition))
        return patches

    def modulated(self, tokens: Tensor, condition: Tensor) -> Tensor:
        """Normalize tokens, then shift and scale them by the condition."""
        shift, scale = chunks(self.adaLN_modulation, condition, 2)
        return modulate(self.norm_final(tokens), shift, scale)


class ConvProjector(nn.Module):
    """iREPA's projector (arXiv 2512.10794): one convolution over the token grid, with zero padding.

    Maps tokens [B, N, D] of a square grid, in row-major order, to [B, N, z_dim]. Uses PyTorch's default initialization.
    """

    def __init__(self, config: SiTConfig, z_dim: int) -> None:
        super().__init__()
        self.grid_size = config.input_size // config.patch_size
        kernel = config.projector_kernel_size
        self.projection_layer = nn.Conv2d(config.hidden_size, z_dim, kernel_size=kernel, padding=kernel // 2)

    def forward(self, tokens: Tensor) -> Tensor:
        """Predict patch tokens [B, N, z_dim], each from a token and the neighbors that the kernel covers."""
        grid = tokens.transpose(1, 2).unflatten(2, (self.grid_size, self.grid_size))
        projected: Tensor = self.projection_layer(grid).flatten(2).transpose(1, 2)
        return projected


def make_projector(config: SiTConfig, z_dim: int) -> nn.Module:
    """Build REPA's or iREPA's projector, from tokens [B, N, D] to predicted patch tokens [B, N, z_dim]."""
    if config.projector == "conv":
        return ConvProjector(config, z_dim)
    return projector(config.hidden_size, config.projector_dim, z_dim)
