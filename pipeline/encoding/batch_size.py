"""How many images a GPU takes at once: found by trying."""

from __future__ import annotations

from collections.abc import Callable

import torch

CPU_BATCH = 16
SMALLEST, LARGEST = 8, 256  # more than 256 images at once make no model faster
MARGIN = 0.8  # of the free memory; what fragments, and what other shapes need, has the rest


def largest_batch(fits: Callable[[int], bool], smallest: int = SMALLEST, largest: int = LARGEST) -> int:
    """The largest power of two times `smallest` that fits, doubling until one does not; `smallest` untried."""
    batch_size = smallest
    while 2 * batch_size <= largest and fits(2 * batch_size):
        batch_size *= 2
    return batch_size


def fits_on_gpu(run: Callable[[torch.Tensor], object], resolution: int, device: torch.device) -> Callable[[int], bool]:
    """Whether `run` takes a batch of so many blank crops within `MARGIN` of the memory that is free now."""

    def fits(batch_size: int) -> bool:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        limit = MARGIN * (torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_allocated(device))
        try:
            run(torch.zeros(batch_size, 3, resolution, resolution, dtype=torch.uint8, device=device))
        except RuntimeError:  # out of memory, or too many numbers for a kernel; what else is wrong, 8 images show
            return False
        return torch.cuda.max_memory_allocated(device) <= limit

    return fits
