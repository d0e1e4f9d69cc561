"""Ranks: one process by default, or those of a launcher that sets RANK and WORLD_SIZE, such as torchrun.

Imports torch only to join other ranks, so a command can look for finished work before.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class DistributedContext:
    """The place of this process among all ranks."""

    rank: int
    world_size: int

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def rows(self, count: int) -> slice:
        """Return this rank's rows of a global batch of `count` samples."""
        share = count // self.world_size
        return slice(self.rank * share, (self.rank + 1) * share)

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean over ranks, on every rank."""
        if self.world_size > 1:
            from torch import distributed

            distributed.all_reduce(values)
        return values / self.world_size

    def any(self, here: bool, device: torch.device) -> bool:
        """Return whether `here` is true on any rank; waits for all of them."""
        if self.world_size == 1:
            return here
        import torch
        from torch import distributed

        found = torch.tensor(float(here), device=device)
        distributed.all_reduce(found, distributed.ReduceOp.MAX)
        return bool(found)

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world_size > 1:
            from torch import distributed

            distributed.barrier()


def ranks_of_environment() -> DistributedContext:
    """Return the place of this process, as a launcher has set it, without joining the others."""
    return DistributedContext(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))


@contextmanager
def init_distributed(device: torch.device) -> Iterator[DistributedContext]:
    """Join the process group that the environment describes; destroy it afterwards if it was created here."""
    from torch import distributed

    context = ranks_of_environment()
    start = context.world_size > 1 and not distributed.is_initialized()
    if start:
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield context
    finally:
        if start:
            distributed.destroy_process_group()
