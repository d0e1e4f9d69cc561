"""DistributedContext: one process by default, as many as torchrun (or whoever sets RANK and WORLD_SIZE) started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, distributed


@dataclass(frozen=True, slots=True)
class DistributedContext:
    """This process among all."""

    rank: int
    world_size: int
    local_rank: int

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def rows(self, count: int) -> slice:
        """This rank's rows of a global batch of `count`."""
        share = count // self.world_size
        return slice(self.rank * share, (self.rank + 1) * share)

    def mean(self, values: Tensor) -> Tensor:
        """The mean over ranks, on every rank."""
        if self.world_size > 1:
            distributed.all_reduce(values)
        return values / self.world_size

    def any(self, here: bool, device: torch.device) -> bool:
        """Whether it is so on any rank. The host waits for all."""
        found = torch.tensor(float(here), device=device)
        if self.world_size > 1:
            distributed.all_reduce(found, distributed.ReduceOp.MAX)
        return bool(found)

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world_size > 1:
            distributed.barrier()


@contextmanager
def init_distributed(device: torch.device) -> Iterator[DistributedContext]:
    """Join the process group that the environment describes; leave it at the end if it was started here."""
    ranks = DistributedContext(*(int(os.environ.get(name, default)) for name, default in _VARIABLES))
    start = ranks.world_size > 1 and not distributed.is_initialized()
    if start:
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield ranks
    finally:
        if start:
            distributed.destroy_process_group()


_VARIABLES = (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))
