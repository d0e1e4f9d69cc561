"""The layers of SiT, initialized as published. Attribute names are those of the published checkpoints."""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from .config import SiTConfig

_small_normal = partial(nn.init.normal_, std=0.02)


def _linear(inputs: int, outputs: int, init: Callable[[Tensor], Tensor]) -> nn.Linear:
    """Build a linear layer with weights initialized by `init` and zero biases."""
    layer = nn.Linear(inputs, outputs)
    init(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class PatchEmbed(nn.Module):
    """Latents [B, C, H, W] to tokens [B, N, D], in row-major order."""

    def __init__(self, config: SiTConfig) -> None:
        super().__init__()
        side = config.patch_size
        self.proj = nn.Conv2d(config.in_channels, config.hidden_size, kernel_size=side, stride=side)
        nn.init.xavier_uniform_(self.proj.weight.data.flatten(1))  # initialized like a linear layer on patches
        self.proj.bias = nn.Parameter(torch.zeros(config.hidden_size))

    def forward(self, x: Tensor) -> Tensor:
        """Map each patch of latents linearly."""
        tokens: Tensor = self.proj(x).flatten(2).transpose(1, 2)
        return tokens


class TimestepEmbedder(nn.Module):
    """Time [B] to embedding [B, D]: cosines and sines of 128 frequencies from 1 down to 1/10,000, then an MLP."""

    num_frequencies = 128
    max_period = 10_000.0

    def __init__(self, config: SiTConfig) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            _linear(2 * self.num_frequencies, config.hidden_size, _small_normal),
            nn.SiLU(),
            _linear(config.hidden_size, config.hidden_size, _small_normal),
        )

    def forward(self, t: Tensor, dtype: torch.dtype) -> Tensor:
        """Embed times in `dtype`; the angles are always computed in float32."""
        steps = torch.arange(self.num_frequencies, dtype=torch.float32, device=t.device)
        frequencies = torch.exp(-math.log(self.max_period) * steps / self.num_frequencies)
        angles = t.reshape(-1, 1) * frequencies
        embedding: Tensor = self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1).to(dtype))
        return embedding


class LabelEmbedder(nn.Module):
    """Labels [B] to embedding [B, D]. The table's last row is the null label's, if the model has one."""

    def __init__(self, config: SiTConfig) -> None:
        super().__init__()
        rows = config.num_classes + (config.class_dropout_prob > 0)
        self.embedding_table = nn.Embedding(rows, config.hidden_size)
        _small_normal(self.embedding_table.weight)

    def forward(self, labels: Tensor) -> Tensor:
        """Look up the labels' embeddings."""
        embedding: Tensor = self.embedding_table(labels)
        return embedding


class Attention(nn.Module):
    """Multi-head self-attention over tokens [B, N, D]."""

    def __init__(self, config: SiTConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_heads, self.head_width = config.num_heads, width // config.num_heads
        self.qkv = _linear(width, 3 * width, nn.init.xavier_uniform_)
        self.q_norm = nn.LayerNorm(self.head_width) if config.qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(self.head_width) if config.qk_norm else nn.Identity()
        self.proj = _linear(width, width, nn.init.xavier_uniform_)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return tokens [B, N, D]."""
        batch, count, _ = tokens.shape
        qkv = self.qkv(tokens).reshape(batch, count, 3, self.num_heads, self.head_width)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each [B, heads, N, head width]
        mixed = scaled_dot_product_attention(self.q_norm(query), self.k_norm(key), value)
        result: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return result


class Mlp(nn.Module):
    """Two linear layers with a GELU (tanh approximation) between them, applied to each token separately."""

    def __init__(self, config: SiTConfig) -> None:
        super().__init__()
        inner = int(config.hidden_size * config.mlp_ratio)
        self.fc1 = _linear(config.hidden_size, inner, nn.init.xavier_uniform_)
        self.act = nn.GELU(approximate="tanh")
        self.fc2 = _linear(inner, config.hidden_size, nn.init.xavier_uniform_)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return tokens [B, N, D]."""
        result: Tensor = self.fc2(self.act(self.fc1(tokens)))
        return result


def _modulation(width: int, parts: int) -> nn.Sequential:
    """Build the map from condition [B, D] to shifts, scales and gates [B, parts * D], zero-initialized (adaLN-zero)."""
    return nn.Sequential(nn.SiLU(), _linear(width, parts * width, nn.init.zeros_))


def _modulate(tokens: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return tokens * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


class SiTBlock(nn.Module):
    """A transformer block with norms and gates modulated by the condition; initialized to the identity."""

    def __init__(self, config: SiTConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, elementwise_affine=False, eps=1e-6)
        self.attn = Attention(config)
        self.norm2 = nn.LayerNorm(config.hidden_size, elementwise_affine=False, eps=1e-6)
        self.mlp = Mlp(config)
        self.adaLN_modulation = _modulation(config.hidden_size, 6)

    def forward(self, tokens: Tensor, condition: Tensor) -> Tensor:
        """Return tokens [B, N, D], given tokens [B, N, D] and condition [B, D]."""
        modulation: Tensor = self.adaLN_modulation(condition)
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation.chunk(6, dim=-1)
        attended: Tensor = self.attn(_modulate(self.norm1(tokens), shift1, scale1))
        tokens = tokens + gate1.unsqueeze(1) * attended
        mapped: Tensor = self.mlp(_modulate(self.norm2(tokens), shift2, scale2))
        return tokens + gate2.unsqueeze(1) * mapped


class FinalLayer(nn.Module):
    """Tokens to patches of the velocity; zero-initialized."""

    def __init__(self, config: SiTConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.norm_final = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.linear = _linear(width, config.patch_size**2 * config.in_channels, nn.init.zeros_)
        self.adaLN_modulation = _modulation(width, 2)

    def forward(self, tokens: Tensor, condition: Tensor) -> Tensor:
        """Return patches [B, N, patch_size ** 2 * C], given tokens [B, N, D] and condition [B, D]."""
        patches: Tensor = self.linear(self.modulated(tokens, condition))
        return patches

    def modulated(self, tokens: Tensor, condition: Tensor) -> Tensor:
        """Normalize tokens, then shift and scale them by the condition."""
        shift, scale = self.adaLN_modulation(condition).chunk(2, dim=-1)
        return _modulate(self.norm_final(tokens), shift, scale)


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
    return nn.Sequential(
        _linear(config.hidden_size, config.projector_dim, nn.init.xavier_uniform_),
        nn.SiLU(),
        _linear(config.projector_dim, config.projector_dim, nn.init.xavier_uniform_),
        nn.SiLU(),
        _linear(config.projector_dim, z_dim, nn.init.xavier_uniform_),
    )


def sincos_position_embedding(hidden_size: int, grid_size: int) -> Tensor:
    """Return the fixed position embedding of a square grid, [1, grid_size ** 2, hidden_size] float32.

    The first half of the channels encodes the column, the second half the row. Each half holds sines, then cosines
    (MAE, arXiv 2111.06377).
    """
    quarter = hidden_size // 4
    frequencies = 10_000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    angles = torch.arange(grid_size, dtype=torch.float64)[:, None] * frequencies
    line = torch.cat([angles.sin(), angles.cos()], dim=1)  # [grid_size, D / 2]
    columns = line[None, :, :].expand(grid_size, -1, -1)
    rows = line[:, None, :].expand(-1, grid_size, -1)
    return torch.cat([columns, rows], dim=2).flatten(0, 1)[None].float()
