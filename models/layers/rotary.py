"""Rotary positions of a square grid of tokens (arXiv 2104.09864), as EVA-02 and LightningDiT rotate them."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn


class Rotary(nn.Module):
    """Rotates queries and keys by the position of their token.

    The first half of a head's channels turns with the row, the second half with the column; neighboring pairs of
    channels turn together.

    Args:
        head_width: channels of a head, a multiple of 4.
        grid_size: side of the grid.
        unrotated: tokens after those of the grid, which are not rotated.
        persistent: whether the tables are in the state dict, as they are in most published checkpoints.
    """

    freqs_cos: Tensor
    freqs_sin: Tensor

    def __init__(self, head_width: int, grid_size: int, unrotated: int = 0, persistent: bool = True) -> None:
        super().__init__()
        half = head_width // 2
        frequencies = 10_000.0 ** (-torch.arange(0, half, 2, dtype=torch.float64) / half)
        line = torch.outer(torch.arange(grid_size, dtype=torch.float64), frequencies).repeat_interleave(2, dim=1)
        rows = line[:, None, :].expand(-1, grid_size, -1)
        columns = line[None, :, :].expand(grid_size, -1, -1)
        angles = torch.cat([rows, columns], dim=2).flatten(0, 1)
        angles = torch.cat([angles, angles.new_zeros(unrotated, head_width)])
        self.register_buffer("freqs_cos", angles.cos().float(), persistent)
        self.register_buffer("freqs_sin", angles.sin().float(), persistent)

    def forward(self, heads: Tensor) -> Tensor:
        """Rotate queries or keys [B, heads, N, head_width]."""
        return _rotate(heads, self.freqs_cos, self.freqs_sin)

    def at(self, positions: Tensor) -> Callable[[Tensor], Tensor]:
        """Return the rotation of tokens at other positions than all of the grid in their order.

        Args:
            positions: [N], or [B, N] with those of each sample, counted row by row from 0, which means no rotation.
        """
        cosines, sines = self.freqs_cos[positions], self.freqs_sin[positions]  # [..., N, head_width]
        return partial(_rotate, cosines=cosines.unsqueeze(-3), sines=sines.unsqueeze(-3))


def _rotate(heads: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    even, odd = heads.unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([-odd, even], dim=-1).flatten(-2)
    return (heads * cosines + turned * sines).to(heads.dtype)
