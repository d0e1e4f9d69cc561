"""The dispersive loss (arXiv 2506.09027): the hidden tokens of the samples of a batch are moved apart."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from ....diffusion.loss import dispersive_loss
from ....models.sit.model import block_tap
from .term import ModelOutput, Prepared, Term, TermContext


class DispersiveTerm(Term):
    """The dispersive loss of the tokens after one block, over the rows of a rank, as published."""

    metric: ClassVar[str] = "dispersive_loss"

    def __init__(self, context: TermContext) -> None:
        self._config = context.config
        self._tap = block_tap(self._config.dispersive_block or len(context.model.blocks))

    @property
    def taps(self) -> tuple[str, ...]:
        """The tokens after the block."""
        return (self._tap,)

    def weight(self, step: int) -> float:
        """Return `--dispersive-coeff`."""
        return self._config.dispersive_coeff

    def loss(self, output: ModelOutput, prepared: Prepared) -> Tensor:
        """Return the loss of the rows together."""
        return dispersive_loss(output.tapped[self._tap], self._config.dispersive_temperature)
