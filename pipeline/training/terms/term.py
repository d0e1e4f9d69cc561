"""The interface of a term of the objective: inputs prepared from a batch, a weight per step, and a loss.

The objective is the sum of weight times loss over its terms. The training loop does not know individual terms.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

from torch import Tensor

from ....stores import Batch
from ...runtime.distributed import DistributedContext

Prepared: TypeAlias = dict[str, Any]  # tensors with one row per sample, or lists of them


@dataclass(frozen=True, slots=True)
class ModelOutput:
    """The model's output for the rows of a forward pass, and the target of the velocity."""

    velocity: Tensor  # like the model's state: [B, C, h, w], or one vector per sample with class tokens (REG)
    target: Tensor  # like velocity
    projected: list[Tensor]  # per encoder [B, N, D]; empty unless a term needs it
    tapped: dict[str, Tensor]  # what else terms have asked the model for


class Term(ABC):
    """One term of the objective. Only `metric` and `loss` are required."""

    metric: ClassVar[str]  # column of its loss in metrics.parquet
    taps: ClassVar[tuple[str, ...]] = ()  # names of what `loss` reads in `ModelOutput.tapped`

    def prepare(self, batch: Batch, step: int, ranks: DistributedContext) -> Prepared:
        """Return the inputs of the term: this rank's rows, on the device of the batch.

        Random draws must come from a separate `Stream` (`runtime/seeds.py`), so that adding a term changes no other
        draw.
        """
        return {}

    def extend(self, data: Tensor, noise: Tensor, prepared: Prepared) -> tuple[Tensor, Tensor]:
        """Return data and noise as the model's state: the latents [B, C, h, w], extended by this term if needed."""
        return data, noise

    def needs_projection(self, prepared: Prepared) -> bool:
        """Return whether `loss` reads `ModelOutput.projected`."""
        return False

    def weight(self, step: int) -> float:
        """Return the weight at step `step`, counted from 0."""
        return 1.0

    @abstractmethod
    def loss(self, output: ModelOutput, prepared: Prepared) -> Tensor:
        """Return the mean loss over the rows of the forward pass, a scalar."""
