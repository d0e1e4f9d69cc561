"""Times per token in training (arXiv 2607.02508): a random part of each sample's tokens has a time of its own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...diffusion.token_times import times_of, token_groups


def draw_token_times(
    times: Tensor, share: float, tokens: int, draw: Callable[[torch.Generator], Tensor], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return the time [B, N] and the group [B, N] int64 of every token of a global batch.

    Args:
        times: of the first group, [B].
        share: of the tokens that are in the first group.
        tokens: number of tokens N.
        draw: draws the times of the second group, [B].
        generator: of this step, used for nothing else.
    """
    uniform = torch.rand((len(times), tokens), generator=generator, device=times.device)
    groups = token_groups(uniform, (share, 1 - share))
    return times_of(groups, torch.stack([times, draw(generator)])), groups
