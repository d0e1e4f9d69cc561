"""Embeddings of latents, times, labels and positions."""

import math

import torch
from torch import Tensor, nn

from .linear import linear, small_normal


class PatchEmbed(nn.Module):
    """Latents [B, C, H, W] to tokens [B, N, D], in row-major order."""

    def __init__(self, channels: int, patch_size: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, kernel_size=patch_size, stride=patch_size)
        nn.init.xavier_uniform_(self.proj.weight.data.flatten(1))  # initialized like a linear layer on patches
        self.proj.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """Map each patch of latents linearly."""
        tokens: Tensor = self.proj(x).flatten(2).transpose(1, 2)
        return tokens


class BottleneckPatchEmbed(nn.Module):
    """Latents [B, C, H, W] to tokens [B, N, D] through fewer channels, as in JiT (arXiv 2511.13720)."""

    def __init__(self, channels: int, patch_size: int, bottleneck: int, width: int) -> None:
        super().__init__()
        self.proj1 = nn.Conv2d(channels, bottleneck, kernel_size=patch_size, stride=patch_size, bias=False)
        self.proj2 = nn.Conv2d(bottleneck, width, kernel_size=1)
        for layer in (self.proj1, self.proj2):
            nn.init.xavier_uniform_(layer.weight.data.flatten(1))
        nn.init.zeros_(self.proj2.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Map each patch of latents linearly."""
        tokens: Tensor = self.proj2(self.proj1(x)).flatten(2).transpose(1, 2)
        return tokens


def unpatchify(patches: Tensor, patch_size: int) -> Tensor:
    """Rearrange patches [B, N, p * p * C] of a square grid to [B, C, H, W]."""
    grid = round(patches.shape[1] ** 0.5)  # not isqrt: torch.compile traces it only for a constant shape
    pixels = patches.reshape(len(patches), grid, grid, patch_size, patch_size, -1)  # [B, row, column, p, q, C]
    size = grid * patch_size
    return pixels.permute(0, 5, 1, 3, 2, 4).reshape(len(patches), -1, size, size)


class TimestepEmbedder(nn.Module):
    """Times [...] to embedding [..., D]: cosines and sines of 128 frequencies from 1 down to 1/10,000, then an MLP."""

    num_frequencies = 128
    max_period = 10_000.0

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = time_mlp(2 * self.num_frequencies, width)

    def forward(self, t: Tensor, dtype: torch.dtype) -> Tensor:
        """Embed times in `dtype`; the angles are always computed in float32."""
        steps = torch.arange(self.num_frequencies, dtype=torch.float32, device=t.device)
        frequencies = torch.exp(-math.log(self.max_period) * steps / self.num_frequencies)
        angles = t.unsqueeze(-1) * frequencies
        embedding: Tensor = self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1).to(dtype))
        return embedding


def time_mlp(inputs: int, width: int) -> nn.Sequential:
    """Build the MLP that follows the sines and cosines of a time."""
    return nn.Sequential(linear(inputs, width, small_normal), nn.SiLU(), linear(width, width, small_normal))


class FourierTimeEmbedder(nn.Module):
    """Time [B] to embedding [B, D], as in RAE: sines and cosines of 256 random frequencies, an MLP, all trained."""

    num_frequencies = 256

    def __init__(self, width: int) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.randn(self.num_frequencies))
        self.mlp = time_mlp(2 * self.num_frequencies, width)

    def forward(self, t: Tensor, dtype: torch.dtype) -> Tensor:
        """Embed times in `dtype`; the angles are always computed in float32."""
        angles = t.float().reshape(-1, 1) * self.W.float() * (2 * math.pi)
        embedding: Tensor = self.mlp(torch.cat([angles.sin(), angles.cos()], dim=-1).to(dtype))
        return embedding


class LabelEmbedder(nn.Module):
    """Labels [B] to embedding [B, D]. The table's last row is the null label's, if the model has one."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(rows, width)
        small_normal(self.embedding_table.weight)

    def forward(self, labels: Tensor) -> Tensor:
        """Look up the labels' embeddings."""
        embedding: Tensor = self.embedding_table(labels)
        return embedding


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
