"""The state of optimizer and gradient scaler in a checkpoint: loaded only if it is that of these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypedDict

import torch
from msgspec import Meta
from torch import Tensor

from ...converter import require_plain, shown, structure
from ...errors import CheckpointError
from .muon import Muon
from .parallel import shard_optimizer_state_dict

_ADAMW_TENSORS, _MUON_TENSORS = ("exp_avg", "exp_avg_sq"), ("momentum_buffer",)
_REQUIRED = {"params", "weight_decay"}
_ADAMW_REQUIRED, _MUON_REQUIRED = _REQUIRED | {"betas", "eps", "fused"}, _REQUIRED | {"momentum"}
_NOT_COMPARED = {"lr"}  # which every step sets


def states_of(optimizers: Mapping[str, torch.optim.Optimizer]) -> dict[str, Any]:
    """Return what checkpoints hold as `opt`: the state of a single optimizer as it is, those of several by name."""
    states = {name: optimizer.state_dict() for name, optimizer in optimizers.items()}
    return states if len(states) > 1 else next(iter(states.values()))


def load_optimizers(optimizers: Mapping[str, torch.optim.Optimizer], recorded: object, step: int, path: Path) -> None:
    """Load the states that the checkpoint at `path` recorded after `step` steps.

    Raises:
        CheckpointError: a state has other parameters, shapes or settings than the optimizer: torch would load some of
            these, and train on with them.
    """
    for name, optimizer in optimizers.items():
        state, prefix = recorded, ""
        if len(optimizers) > 1:
            state, prefix = recorded.get(name) if isinstance(recorded, Mapping) else None, f"{name}: "
        problem = _why_not(optimizer, state, step)
        if problem:
            raise CheckpointError(
                f"{path}: opt: {prefix}{problem}: restore the checkpoint from a copy, or resume from an earlier one"
            )
        _load(optimizer, state)


def _load(optimizer: torch.optim.Optimizer, recorded: object) -> None:
    optimizer.load_state_dict(shard_optimizer_state_dict(recorded, optimizer))  # type: ignore[arg-type]


class _ScalerState(TypedDict):
    """The state of a GradScaler."""

    scale: Annotated[float, Meta(gt=0, le=1e38)]
    growth_factor: float
    backoff_factor: float
    growth_interval: int
    _growth_tracker: Annotated[int, Meta(ge=0)]


def load_scaler(scaler: torch.amp.GradScaler, recorded: object, path: Path) -> None:
    """Load the state of a GradScaler; one that is not enabled has none.

    Raises:
        CheckpointError: it is not that of such a scaler.
    """
    where = f"{path}: scaler"
    require_plain(recorded, where, CheckpointError)
    if scaler.is_enabled():
        scaler.load_state_dict(dict(structure(recorded, _ScalerState, where, CheckpointError)))
    elif recorded:
        raise CheckpointError(f"{where}: found {shown(recorded)}, expected none without --mixed-precision fp16")


def _why_not(optimizer: torch.optim.Optimizer, recorded: object, step: int) -> str | None:
    """Return why a recorded state is not that of the optimizer; None: it is."""
    own = optimizer.state_dict()["param_groups"]
    if not isinstance(recorded, Mapping) or not {"state", "param_groups"} <= recorded.keys():
        return "expected the entries state and param_groups"
    groups, state = recorded["param_groups"], recorded["state"]
    if not isinstance(groups, list) or len(groups) != len(own) or not all(isinstance(each, dict) for each in groups):
        return f"expected a list of {len(own)} parameter groups"
    for mine, theirs in zip(own, groups, strict=True):
        # other versions of torch have other entries
        required = _MUON_REQUIRED if isinstance(optimizer, Muon) else _ADAMW_REQUIRED
        names = (required | (mine.keys() & theirs.keys())) - _NOT_COMPARED
        different = [name for name in sorted(names) if repr(theirs.get(name)) != repr(mine[name])]
        if different:
            return f"its {different[0]} differs from that of this run"
    parameters = [weight for group in optimizer.param_groups for weight in group["params"]]
    if not isinstance(state, Mapping) or not all(each in range(len(parameters)) for each in state):
        return f"expected the state of parameters 0 to {len(parameters) - 1}"
    for number, values in state.items():
        is_muon = isinstance(optimizer, Muon)
        found = (_why_not_muon if is_muon else _why_not_adamw)(values, parameters[number], step)
        if found:
            return f"parameter {number}: {found}"
    return None


def _why_not_adamw(values: object, parameter: Tensor, step: int) -> str | None:
    if not isinstance(values, Mapping) or values.keys() != {"step", *_ADAMW_TENSORS}:
        return f"expected step, {' and '.join(_ADAMW_TENSORS)}"
    if not isinstance(values["step"], Tensor) or values["step"].numel() != 1 or not 0 <= values["step"].item() <= step:
        return f"expected a step from 0 to {step}"
    return _why_not_tensors(values, _ADAMW_TENSORS, parameter)


def _why_not_muon(values: object, parameter: Tensor, step: int) -> str | None:
    if not isinstance(values, Mapping) or values.keys() != set(_MUON_TENSORS):
        return f"expected {_MUON_TENSORS[0]}"
    return _why_not_tensors(values, _MUON_TENSORS, parameter)


def _why_not_tensors(values: Mapping[str, object], names: Sequence[str], parameter: Tensor) -> str | None:
    for name in names:
        tensor = values[name]
        if not isinstance(tensor, Tensor) or tensor.shape != parameter.shape or not tensor.is_floating_point():
            return f"expected {name} of shape {list(parameter.shape)}"
    return None
