"""The interface of a term of the objective: inputs prepared from a batch, a weight per step, and a loss.

The objective is the sum of weight times loss over its terms. The training loop does not know individual terms.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self, TypeAlias

from torch import Tensor, nn

from ....config import TrainConfig
from ....models.diffusion_model import DiffusionModel
from ....stores import Batch, Store
from ...runtime.distributed import DistributedContext
from ...runtime.seeds import RandomStreams

Prepared: TypeAlias = dict[str, Any]  # tensors with one row per sample, or lists of them


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """All inputs of a step, on the device: the rows of one rank, or some of them."""

    latents: Tensor  # [B, …], as the space reads them from the batch: moments [B, 2C, h, w], or tokens [B, C, h, w]
    labels: Tensor  # [B] int64
    times: Tensor  # [B] float32; with times per token, [B, N]
    groups: Tensor | None  # [B, N] int64, the group of each token, with times per token
    noise: Tensor  # [B, C, h, w] float32
    posterior: Tensor | None  # [B, C, h, w] float32, if the space draws from a posterior
    dropped: Tensor  # [B] bool: labels to drop
    routing: dict[str, Tensor]  # arguments of SR-DiT, with one row per sample
    terms: list[Prepared]  # per term, what it prepared
    weights: list[float]  # per term

    def rows(self, rows: slice) -> Self:
        """Return some of the rows."""
        return replace(self, **{field.name: _cut(getattr(self, field.name), rows) for field in fields(self)})


def _cut(value: Any, rows: slice) -> Any:
    if isinstance(value, list):
        return [_cut(each, rows) for each in value]
    if isinstance(value, dict):
        return {name: _cut(each, rows) for name, each in value.items()}
    return value[rows] if isinstance(value, Tensor) else value


@dataclass(frozen=True, slots=True)
class ModelOutput:
    """The model's output for the rows of a forward pass, and the target of the velocity."""

    velocity: Tensor  # like the model's state: [B, C, h, w], or one vector per sample with class tokens (REG)
    target: Tensor  # like velocity
    projected: list[Tensor]  # per encoder [B, N, D]; empty unless a term needs it
    tapped: Mapping[str, Tensor]  # what else terms have asked the model for
    teacher: Mapping[str, Tensor]  # what the term has asked the teacher for


@dataclass(frozen=True, slots=True)
class TeacherCall:
    """What a term asks of the teacher, the EMA of the model, which sees the same data and noise at other times.

    Calls of the same `key` are one forward pass, however many terms make them.
    """

    key: str
    times: Tensor  # [B], or [B, N] per token
    labels: Tensor  # [B] int64
    blocks: tuple[int, ...]  # numbers of blocks, counted from 1, whose tokens are returned as `block_N`
    groups: Tensor | None = None  # [B, N] int64: tokens attend to those of their own group only


@dataclass(frozen=True, slots=True)
class TermContext:
    """What a term is built from."""

    config: TrainConfig
    store: Store
    model: DiffusionModel
    streams: RandomStreams


class Term(ABC):
    """One term of the objective. Only `metric` and `loss` are required."""

    metric: ClassVar[str]  # column of its loss in metrics.parquet
    needs_targets: ClassVar[bool] = False  # whether `add_targets` is called
    coefficient = 1.0  # the constant weight, unless `weight` is overridden

    @classmethod
    def heads(cls, config: TrainConfig, model: DiffusionModel) -> dict[str, nn.Module]:
        """Return modules that are trained with the model, by the names under which they become its submodules.

        They are saved with the model, averaged with it, and left out when it is sampled.
        """
        return {}

    @property
    def taps(self) -> tuple[str, ...]:
        """Names of what `loss` reads in `ModelOutput.tapped`, of `model.taps`."""
        return ()

    def prepare(self, batch: Batch, step: int, ranks: DistributedContext) -> Prepared:
        """Return the inputs of the term: this rank's rows, on the device of the batch.

        Random draws must come from a separate `Stream` (`runtime/seeds.py`), so that adding a term changes no other
        draw.
        """
        return {}

    def add_targets(self, prepared: Prepared, target: Tensor, ranks: DistributedContext) -> Prepared:
        """Return the inputs of the term, given the targets of this rank's rows as well, if it `needs_targets`."""
        return prepared

    def extend(self, data: Tensor, noise: Tensor, prepared: Prepared) -> tuple[Tensor, Tensor]:
        """Return data and noise as the model's state: the latents [B, C, h, w], extended by this term if needed."""
        return data, noise

    def needs_projection(self, prepared: Prepared) -> bool:
        """Return whether `loss` reads `ModelOutput.projected`."""
        return False

    def needs_taps(self, prepared: Prepared) -> bool:
        """Return whether `loss` reads `taps` of `ModelOutput.tapped`; if not, the model does not compute them."""
        return True

    def ask_teacher(self, inputs: Inputs, labels: Tensor, prepared: Prepared) -> TeacherCall | None:
        """Return what `loss` reads in `ModelOutput.teacher`, if anything.

        Args:
            inputs: the rows of the forward pass.
            labels: their labels [B] as the model gets them, some of them dropped.
            prepared: the inputs of the term.
        """
        return None

    def weight(self, step: int) -> float:
        """Return the weight at step `step`, counted from 0."""
        return self.coefficient

    @abstractmethod
    def loss(self, output: ModelOutput, prepared: Prepared) -> Tensor:
        """Return the mean loss over the rows of the forward pass, a scalar."""
