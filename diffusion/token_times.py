"""Times per token: a random partition of the tokens of each sample, with one time per group (arXiv 2607.02508)."""

from collections.abc import Sequence

import torch
from torch import Tensor


def token_groups(uniform: Tensor, shares: Sequence[float], full: Tensor | None = None) -> Tensor:
    """Return the group of every token, [B, N] int64.

    Args:
        uniform: a uniform draw per token [B, N]; tokens of the smallest draws are in group 0, the next ones in group 1.
        shares: of the groups. Sizes are rounded down, and the rest goes to the largest fractional parts.
        full: bool [B]; samples whose tokens are all in the last of two groups. None: no sample.
    """
    count = uniform.shape[1]
    exact = [share * count for share in shares]
    sizes = [int(size) for size in exact]
    for group in sorted(range(len(shares)), key=lambda group: sizes[group] - exact[group])[: count - sum(sizes)]:
        sizes[group] += 1
    numbers = torch.repeat_interleave(torch.tensor(sizes, device=uniform.device)).expand_as(uniform)
    groups = torch.empty_like(numbers).scatter_(1, uniform.argsort(dim=1, stable=True), numbers)
    return groups if full is None else torch.where(full.unsqueeze(1), len(shares) - 1, groups)


def times_of(groups: Tensor, group_times: Tensor) -> Tensor:
    """Return the time of every token [B, N], given its group [B, N] and the times of the groups [G, B]."""
    times: Tensor = group_times.T.gather(1, groups)
    return times


def over_pixels(token_times: Tensor, size: int) -> Tensor:
    """Repeat times of tokens [B, N], on a square grid, over the pixels of their patches: [B, 1, size, size]."""
    side = round(token_times.shape[1] ** 0.5)
    grid = token_times.unflatten(1, (1, side, side))
    patch = size // side
    times: Tensor = grid.repeat_interleave(patch, dim=2).repeat_interleave(patch, dim=3)
    return times
