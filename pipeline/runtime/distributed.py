"""Ranks: one process by default, or those of a launcher that sets RANK and WORLD_SIZE, such as torchrun.

Imports torch only to join other ranks, so a command can look for finished work before.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...errors import ConfigError, first_line

if TYPE_CHECKING:
    import torch
    from torch import Tensor

logger = logging.getLogger(__name__)

VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


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

    def from_first(self, value: int, device: torch.device) -> int:
        """Return the value of the first rank, on every rank; waits for it."""
        if self.world_size == 1:
            return value
        import torch
        from torch import distributed

        sent = torch.tensor(value, device=device)
        distributed.broadcast(sent, 0)
        return int(sent)

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world_size > 1:
            from torch import distributed

            distributed.barrier()


def ranks_of_environment() -> DistributedContext:
    """Return the place of this process, as a launcher has set it, without joining the others.

    Raises:
        ConfigError: the variables of a launcher are incomplete or contradict each other, as those are that a batch
            system or a notebook leaves behind.
    """
    found = {name: os.environ[name] for name in VARIABLES if os.environ.get(name)}
    rank, world_size = found.get("RANK", "0"), found.get("WORLD_SIZE", "1")
    if not (rank.isdecimal() and world_size.isdecimal() and int(rank) < int(world_size)):
        raise _incomplete(found, "expected RANK from 0 to WORLD_SIZE - 1")
    needed = {"RANK", *VARIABLES[2:]} if int(world_size) > 1 else set()
    if lacking := [name for name in VARIABLES if name in needed - found.keys()]:
        raise _incomplete(found, f"without {' and '.join(lacking)}")
    return DistributedContext(int(rank), int(world_size))


def _incomplete(found: Mapping[str, str], problem: str) -> ConfigError:
    values = ", ".join(f"{name}={value}" for name, value in found.items() if name in VARIABLES[:2])
    return ConfigError(
        f"the environment has {values}, {problem}: unset RANK and WORLD_SIZE to run one process, or use torchrun to "
        "start several"
    )


def announce_join(context: DistributedContext) -> None:
    """Log that this process waits for other ranks, since leftover variables are a reason to wait in vain."""
    logger.info(
        "rank %d of %d: waiting for the others at %s (unset RANK and WORLD_SIZE to run one process)",
        context.rank,
        context.world_size,
        _meeting_point(),
    )


def others_not_found(context: DistributedContext, error: Exception) -> ConfigError:
    """Return the error of ranks that did not start."""
    return ConfigError(
        f"rank {context.rank} of {context.world_size} (RANK, WORLD_SIZE) found no others at {_meeting_point()} "
        f"({first_line(error)}): unset RANK and WORLD_SIZE to run one process, or start all ranks"
    )


def _meeting_point() -> str:
    return f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"


def _join(context: DistributedContext, device: torch.device) -> None:
    from torch import distributed

    announce_join(context)
    try:
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    except (distributed.DistError, ValueError) as error:
        raise others_not_found(context, error) from error


@contextmanager
def init_distributed(device: torch.device) -> Iterator[DistributedContext]:
    """Join the process group that the environment describes; destroy it afterwards if it was created here."""
    from torch import distributed

    context = ranks_of_environment()
    start = context.world_size > 1 and not distributed.is_initialized()
    if start:
        _join(context, device)
    try:
        yield context
    finally:
        if start:
            distributed.destroy_process_group()
