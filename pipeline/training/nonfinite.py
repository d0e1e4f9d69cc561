"""Detection of the first step whose loss or gradient is not finite, without synchronizing host and device.

From that step on the optimizer changes nothing, so that when the host checks, steps later, the weights are still those
that produced the bad value. (With fp16, the gradient scaler skips steps and only the losses are checked, since
overflowing gradients are normal there.)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

from ...errors import CheckpointError
from ...stores import AlignmentDataset
from ...stores.files import write_json
from ..artifacts.run_folder import RunFolder


@dataclass(frozen=True, slots=True)
class BadStep:
    """The first step that was not finite."""

    step: int
    values: dict[str, float]


class NonFiniteGuard:
    """Records the first bad step, on the device."""

    def __init__(self, device: torch.device, names: tuple[str, ...], scaled: bool) -> None:
        self.names, self._scaled = (*names, "grad_norm"), scaled
        self._bad = torch.zeros((), device=device)
        self._step = torch.zeros((), dtype=torch.int64, device=device)
        self._values = torch.zeros(len(self.names), device=device)

    def check(self, step: int, values: Tensor, optimizers: Iterable[torch.optim.Optimizer]) -> None:
        """Check a step's losses and gradient norm, between its backward pass and the steps of the optimizers."""
        counted = values[:-1] if self._scaled else values
        first = ~torch.isfinite(counted).all() & (self._bad == 0)
        self._bad = torch.where(first, 1.0, self._bad)
        self._step = torch.where(first, step, self._step)
        self._values = torch.where(first, values, self._values)
        if self._scaled:
            return
        for optimizer in optimizers:
            optimizer.found_inf = self._bad  # type: ignore[attr-defined]  # they read it, as with a scaler

    def bad_step(self) -> BadStep | None:
        """Return the first bad step so far, or None. Synchronizes host and device."""
        if not self._bad.item():
            return None
        return BadStep(int(self._step.item()), dict(zip(self.names, self._values.tolist(), strict=True)))


def stop_run(bad: BadStep, dataset: AlignmentDataset, run: RunFolder, checkpoint: Path) -> NoReturn:
    """Record the samples of the bad step, and raise a CheckpointError that names the files."""
    path = run.nonfinite_report(bad.step)
    values = {name: str(value) for name, value in bad.values.items()}  # JSON has no NaN
    indices = dataset.global_indices_of_step(bad.step - 1).tolist()
    write_json(path, {"step": bad.step, "values": values, "indices": indices})
    found = ", ".join(f"{name} {value:g}" for name, value in bad.values.items())
    raise CheckpointError(
        f"step {bad.step} is not finite ({found}). Its samples are listed in {path}, the weights before it are in "
        f"{checkpoint}: continue from an earlier checkpoint under another --exp-name, with --mixed-precision bf16 or a "
        "lower --learning-rate"
    )
