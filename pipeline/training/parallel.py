"""Data parallelism: every rank holds the whole model (DDP), or a shard of every tensor (FSDP2).

Checkpoints hold full tensors in both cases, as on a single rank, so a resumed run may switch between them.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from ...models.diffusion_model import DiffusionModel


def shard_model(model: DiffusionModel) -> None:
    """Shard the weights of every block across ranks; they are gathered only while the block is computed."""
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    with warnings.catch_warnings():
        # about in-place operations, which the loss does not use
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
        for block in (*model.blocks, *(model.get_submodule(name) for name in model.heads)):
            fully_shard(block)
        fully_shard(model)
    register_fsdp_forward_method(model, "hidden_states")


def reshard(model: DiffusionModel) -> None:
    """Shard the weights again that FSDP2 keeps gathered after a forward pass, those outside of the blocks."""
    if hasattr(model, "reshard"):
        cast(Any, model).reshard()


def data_parallel(objective: nn.Module, model: DiffusionModel, world_size: int) -> nn.Module:
    """Return the objective with gradients averaged over ranks; a sharded model averages them itself."""
    if world_size == 1 or is_sharded(model):
        return objective
    return nn.parallel.DistributedDataParallel(objective, gradient_as_bucket_view=True)


@contextmanager
def gradient_sync(call: nn.Module, model: DiffusionModel, enabled: bool) -> Iterator[None]:
    """Average gradients over ranks in backward passes within the block or, if not enabled, only accumulate them."""
    if is_sharded(model):
        cast(Any, model).set_requires_gradient_sync(enabled)  # FSDP2 adds this method
    accumulate = isinstance(call, nn.parallel.DistributedDataParallel) and not enabled
    with cast(Any, call).no_sync() if accumulate else nullcontext():
        yield


def is_sharded(model: nn.Module) -> bool:
    """Return whether `shard_model` was applied."""
    return isinstance(next(model.parameters()), DTensor)


def full_tensor(value: Tensor) -> Tensor:
    """Gather a sharded tensor on every rank (a collective call); return other tensors as they are."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def gather_state_dict(values: Any, keep: bool) -> Any:
    """Return a state dict with sharded tensors gathered on the CPU, or replaced by None unless `keep`.

    A collective call; only the rank that writes the checkpoint needs to keep the tensors.
    """
    if isinstance(values, dict):
        return {name: gather_state_dict(each, keep) for name, each in values.items()}
    if not isinstance(values, DTensor):
        return values
    full = values.full_tensor()
    return full.cpu() if keep else None


def shard_state_dict(values: Mapping[str, Tensor], like: nn.Module) -> dict[str, Tensor]:
    """Shard full tensors like the tensors of the same names in the module `like`."""
    own = like.state_dict()
    return {name: _shard_as(value, own.get(name)) for name, value in values.items()}


def shard_optimizer_state_dict(values: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Shard an optimizer's full state dict like its parameters."""
    parameters = [weight for group in optimizer.param_groups for weight in group["params"]]
    state = {
        number: {
            name: value if name == "step" else _shard_as(value, parameters[number]) for name, value in each.items()
        }
        for number, each in values["state"].items()
    }
    return values | {"state": state}


def _shard_as(value: Tensor, like: Tensor | None) -> Tensor:
    if not isinstance(like, DTensor):
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
