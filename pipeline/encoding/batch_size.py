"""The largest batch size that fits a GPU, found by trying."""

from __future__ import annotations

from collections.abc import Callable

import torch

CPU_BATCH = 16
SMALLEST, LARGEST = 8, 256  # more than 256 images per batch make no model faster
MARGIN = 0.8  # of the free memory; fragmentation and other shapes need the rest


def largest_batch(fits: Callable[[int], bool], smallest: int = SMALLEST, largest: int = LARGEST) -> int:
    """Return the last batch size that fits when doubling from `smallest`, which is assumed to fit, to `largest`."""
    batch_size = smallest
    while 2 * batch_size <= largest and fits(2 * batch_size):
        batch_size *= 2
    return batch_size


def fits_on_gpu(run: Callable[[torch.Tensor], object], resolution: int, device: torch.device) -> Callable[[int], bool]:
    """Return a function that tests whether a batch of blank crops fits in `MARGIN` of the memory that is free now."""

    def fits(batch_size: int) -> bool:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        limit = MARGIN * (torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_allocated(device))
        try:
            run(torch.zeros(batch_size, 3, resolution, resolution, dtype=torch.uint8, device=device))
        except RuntimeError:  # out of memory, or too large for a kernel; any other error would also occur with 8 images
            return False
        return torch.cuda.max_memory_allocated(device) <= limit

    return fits
