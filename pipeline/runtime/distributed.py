"""Ranks: one process by default, or those of a launcher that sets RANK and WORLD_SIZE, such as torchrun.

Imports torch only to join other ranks, so a command can look for finished work before.
"""

from __future__ import annotations

import logging
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from ...errors import ConfigError, RankError, first_line

if TYPE_CHECKING:
    import torch
    from torch import Tensor

logger = logging.getLogger(__name__)

VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

# Ranks enter the collective calls of a step together, once all have their batch; a compiled first step takes minutes.
STEP_LIMIT = timedelta(minutes=30)
# Ranks wait for each other's own work outside of these calls: a checkpoint, a grid of images, a batch. A rank that has
# died is noticed at once, so this is the limit for one that hangs.
WAIT_LIMIT = timedelta(hours=6)


@dataclass(frozen=True, slots=True)
class DistributedContext:
    """The place of this process among all ranks."""

    rank: int
    world_size: int
    host: Any = field(default=None, compare=False, repr=False)  # process group of the CPUs, once the ranks have joined

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

    def gather(self, values: Tensor) -> Tensor:
        """Return the rows of all ranks, in their order, on every rank; each passes the same number of rows."""
        if self.world_size == 1:
            return values
        from torch import distributed

        gathered = values.new_empty((self.world_size * len(values), *values.shape[1:]))
        distributed.all_gather_into_tensor(gathered, values.contiguous())
        return gathered

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

    def agree(self, own: int) -> tuple[int, int]:
        """Return the highest `own` of all ranks, and the highest rank that has it; waits for all, up to 6 hours.

        An exchange of 8 bytes between CPUs: accelerators are not synchronized. `own` is 0 or more.

        Raises:
            RankError: a rank has died or hangs.
        """
        if self.world_size == 1:
            return own, self.rank
        import torch
        from torch import distributed

        value = torch.tensor(own * self.world_size + self.rank)
        with self.others_alive():
            distributed.all_reduce(value, distributed.ReduceOp.MAX, group=self.host)
        return divmod(int(value), self.world_size)

    def have_same(self, text: str) -> bool:
        """Return, on all ranks, whether they have the same text; RankError as `agree`."""
        own, most = zlib.crc32(text.encode()), 1 << 32
        return self.agree(own)[0] == most - self.agree(most - own)[0]

    def barrier(self) -> None:
        """Wait for all ranks, up to 6 hours; raise RankError if one has died or hangs."""
        self.agree(0)

    @contextmanager
    def others_alive(self) -> Iterator[None]:
        """Turn the error of a collective call that lacks another rank into a RankError."""
        try:
            yield
        except RuntimeError as error:
            if self.world_size == 1 or isinstance(error, RankError) or not _lacks_a_rank(error):
                raise
            raise RankError(
                f"another rank has ended or does not answer ({first_line(error)}): the message of "
                "that rank states why; re-run the same command to resume"
            ) from error


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
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=STEP_LIMIT)
    except (distributed.DistError, ValueError) as error:
        raise others_not_found(context, error) from error


def _lacks_a_rank(error: RuntimeError) -> bool:
    from torch import distributed

    return isinstance(error, distributed.DistError) or "gloo/transport" in str(error)  # gloo has no class of its own


def _host_group() -> Any:
    """Return a group of all ranks for exchanges between CPUs; raise ConfigError if gloo finds no way between them."""
    from torch import distributed
    from torch.distributed import distributed_c10d

    try:
        group = distributed.new_group(backend="gloo", timeout=STEP_LIMIT)  # also the limit for connecting
    except RuntimeError as error:
        raise ConfigError(
            f"ranks cannot connect through gloo ({first_line(error)}): set GLOO_SOCKET_IFNAME to the network interface "
            "that the machines share, such as eth0"
        ) from error
    name = "set_timeout" if hasattr(distributed_c10d, "set_timeout") else "_set_pg_timeout"  # before torch 2.14
    getattr(distributed_c10d, name)(WAIT_LIMIT, group)
    return group


@contextmanager
def init_distributed(device: torch.device) -> Iterator[DistributedContext]:
    """Join the process group that the environment describes; destroy it afterwards if it was created here."""
    from torch import distributed

    context = ranks_of_environment()
    start = context.world_size > 1 and not distributed.is_initialized()
    if start:
        _join(context, device)
    try:
        yield replace(context, host=_host_group()) if context.world_size > 1 else context
    finally:
        if start:
            distributed.destroy_process_group()
