"""How ranks share the work: each with the whole model (DDP), or each with a part of everything (FSDP2).

Checkpoints are the same in both cases and on one rank: whole tensors, so a run may change between them.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from ...models.sit import SiT


def shard(model: SiT) -> None:
    """Leave every rank a part of each block's weights; the whole is together only while a block is computed."""
    from torch.distributed.fsdp import fully_shard

    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")  # of operations in place; the loss has none
    for block in model.blocks:
        fully_shard(block)
    fully_shard(model)


def wrap(objective: nn.Module, model: SiT, world_size: int) -> nn.Module:
    """The objective, its gradients the mean over ranks; a sharded model sees to that itself."""
    if world_size == 1 or is_sharded(model):
        return objective
    return nn.parallel.DistributedDataParallel(objective, gradient_as_bucket_view=True)


@contextmanager
def sharing_gradients(call: nn.Module, model: SiT, now: bool) -> Iterator[None]:
    """Within the block, a backward pass shares gradients with other ranks, or keeps them for a later one."""
    if is_sharded(model):
        cast(Any, model).set_requires_gradient_sync(now)  # FSDP2 gives modules this method
    keep = isinstance(call, nn.parallel.DistributedDataParallel) and not now
    with cast(Any, call).no_sync() if keep else nullcontext():
        yield


def is_sharded(model: nn.Module) -> bool:
    """Whether `shard` has been here."""
    return isinstance(next(model.parameters()), DTensor)


def whole(value: Tensor) -> Tensor:
    """A sharded tensor put together, on every rank; all ranks must call it."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def collect(values: Any, keep: bool) -> Any:
    """A state dict with all sharded tensors in it whole and on the CPU; all ranks must call it, most needn't `keep`."""
    if isinstance(values, dict):
        return {name: collect(each, keep) for name, each in values.items()}
    if not isinstance(values, DTensor):
        return values
    together = values.full_tensor()
    return together.cpu() if keep else None


def shards_of(values: Mapping[str, Tensor], like: nn.Module) -> dict[str, Tensor]:
    """Whole tensors of a state dict, each as the module's own tensor of that name is sharded."""
    own = like.state_dict()
    return {name: _as(value, own.get(name)) for name, value in values.items()}


def optimizer_shards_of(values: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimizer's whole state dict, sharded as its parameters are."""
    parameters = [weight for group in optimizer.param_groups for weight in group["params"]]
    state = {
        number: {name: value if name == "step" else _as(value, parameters[number]) for name, value in each.items()}
        for number, each in values["state"].items()
    }
    return values | {"state": state}


def _as(value: Tensor, like: Tensor | None) -> Tensor:
    if not isinstance(like, DTensor):
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
