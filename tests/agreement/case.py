"""One file of recorded figures: its setting, inputs and outputs, and the tolerances of the comparison."""

from __future__ import annotations

import importlib.util
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from repa_pipe.diffusion.posterior import sample_posterior

FILL = Path(__file__).parents[1] / "reference" / "weights.py"
VALUES, MOVES = 3e-5, 1e-4  # relative L2
MOVE_LENGTH = 2_000  # recorded numbers of a move

Figures = dict[str, Any]  # tensors, arrays or numbers by the names of the recorded outputs


@dataclass(frozen=True)
class Case:
    """The contents of a `.npz` file."""

    path: Path
    config: dict[str, Any]
    arrays: dict[str, npt.NDArray[Any]]

    @classmethod
    def read(cls, path: Path) -> Case:
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files}
        return cls(path, json.loads(str(arrays.pop("config"))), arrays)

    def __getitem__(self, name: str) -> Tensor:
        return torch.from_numpy(self.arrays[name])

    def matching(self, pattern: str) -> list[str]:
        """Return the names of the arrays that match a regular expression."""
        return [name for name in self.arrays if re.fullmatch(pattern, name)]

    def steps(self) -> range:
        """Return the numbers of the recorded training steps."""
        return range(len({name.split("_")[0] for name in self.arrays if re.match(r"step\d+_", name)}))


def _array(found: Any) -> npt.NDArray[Any]:
    return found.detach().numpy() if isinstance(found, Tensor) else np.asarray(found)


def relative_error(found: Any, expected: npt.NDArray[Any]) -> float:
    """Return the relative L2 distance; infinity for another shape or numbers that are not finite."""
    array = _array(found)
    if array.shape != expected.shape:
        return math.inf
    difference = np.linalg.norm((array.astype(np.float64) - expected.astype(np.float64)).ravel())
    scale = np.linalg.norm(expected.astype(np.float64).ravel())
    error = float(difference / scale if scale else difference)
    return error if math.isfinite(error) else math.inf


def relative_error_by_column(found: Any, expected: npt.NDArray[Any]) -> float:
    """Return the largest relative error of a column of a table, whose columns may differ in size."""
    array = _array(found)
    if array.shape != expected.shape:
        return math.inf
    return max(relative_error(array[:, each], expected[:, each]) for each in range(expected.shape[1]))


def relative_error_of_move(found: Any, expected: npt.NDArray[Any]) -> float:
    """Return the relative error of a move without the one number in a thousand that differs most.

    Adam divides a gradient by its own size: where it is zero but for rounding, the order in which a CPU adds up numbers
    decides the step. Of those numbers the error must still be below a hundred times the tolerance.
    """
    array = _array(found)
    if array.shape != expected.shape:
        return math.inf
    differences = np.abs(array.astype(np.float64) - expected.astype(np.float64)).ravel()
    most = np.argsort(differences)[len(differences) - math.ceil(len(differences) / 1000) :]
    others = array.astype(np.float64)  # a copy
    others.flat[most] = expected.flat[most]
    return max(relative_error(others, expected), relative_error(array, expected) / 100)


def fill(model: nn.Module, seed: int, keep: Iterable[str], scale_of: Mapping[str, float] | None = None) -> None:
    """Fill the weights of a model by name; see `filled`."""
    model.load_state_dict(filled(model.state_dict(), seed, keep, scale_of))


def filled(
    tensors: Mapping[str, Tensor], seed: int, keep: Iterable[str], scale_of: Mapping[str, float] | None = None
) -> dict[str, Tensor]:
    """Return tensors like these, filled by name as those of the recording.

    Args:
        tensors: tensors by name.
        seed: of the weights.
        keep: endings of names that keep their values.
        scale_of: factors of tensors by a regular expression for their names; the first that matches is taken. "" stands
            for tensors of two or more axes that nothing else matches.
    """
    spec = importlib.util.spec_from_file_location("weights", FILL)
    assert spec is not None
    assert spec.loader is not None
    weights = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(weights)
    found: dict[str, Tensor] = weights.fill(tensors, seed, tuple(keep))
    for name, value in found.items():
        kept = any(name.endswith(ending) for ending in keep)
        found[name] = value if kept else value * _factor(name, value, scale_of or {})
    return found


def _factor(name: str, value: Tensor, scale_of: Mapping[str, float]) -> float:
    for pattern, factor in scale_of.items():
        if pattern and re.fullmatch(pattern, name):
            return factor
    return scale_of.get("", 1.0) if value.ndim >= 2 else 1.0


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy of the model's parameters by name."""
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that training changes."""
    return [each for each in model.parameters() if each.requires_grad]


def drawn_latents(case: Case, step: int) -> Tensor:
    """Return the latents of a step [B, C, h, w]: its recorded moments with its recorded noise."""
    scale, bias = torch.tensor(case.config["latents_scale"]), torch.tensor(case.config["latents_bias"])
    return sample_posterior(case[f"step{step}_moments"], case[f"step{step}_posterior_noise"], scale, bias)


def optimize(loss: Tensor, optimizer: torch.optim.Optimizer, max_grad_norm: float | None = None) -> Tensor:
    """Take a step of an optimizer on the clipped gradient of a loss; return the norm of the gradient."""
    optimizer.zero_grad()
    loss.backward()
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    norm = nn.utils.clip_grad_norm_(parameters, math.inf if max_grad_norm is None else max_grad_norm)
    optimizer.step()
    return norm


def rows_of(value: Tensor, part: str) -> Tensor:
    """Return rows a to b of a tensor for a `part` of "a:b", or all of it for ""."""
    if not part:
        return value
    start, stop = (int(number) if number else None for number in part.split(":"))
    return value[start:stop]


def moves(case: Case, before: Mapping[str, Tensor], after: Mapping[str, Tensor], prefix: str = "move.") -> Figures:
    """Return the recorded differences of weights, after minus before, flattened and cut as recorded."""
    figures: Figures = {}
    for key in case.matching(re.escape(prefix) + r".*"):
        name, _, part = key.removeprefix(prefix).partition("|")
        if name.endswith("[null row]"):
            name, part = name.removesuffix("[null row]"), "-1:"
        change = after[name] - before[name]
        if name.endswith("attn.qkv.bias") and not part:  # without the K third, whose gradient is rounding
            third = len(change) // 3
            change = torch.cat([change[:third], change[2 * third :]])
        figures[key] = rows_of(change, part).flatten()[:MOVE_LENGTH]
    return figures


class Ema:
    """The moving average of a model's parameters, from their initial values on."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.weights = decay, weights_of(model)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        for name, value in model.named_parameters():
            self.weights[name].lerp_(value.detach(), 1 - self.decay)
