"""The denoising loss of the second, inner head of a model that guides itself (RAEv2, arXiv 2605.18324)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from ....diffusion.loss import denoising_loss
from ....models.raev2.model import BASE
from .term import ModelOutput, Prepared, Term


class BaseHeadTerm(Term):
    """Mean over samples of the denoising loss of the base head, with the published weight of 1."""

    metric: ClassVar[str] = "base_loss"

    @property
    def taps(self) -> tuple[str, ...]:
        """The velocity of the base head."""
        return (BASE,)

    def loss(self, output: ModelOutput, prepared: Prepared) -> Tensor:
        """Return the mean over the samples."""
        return denoising_loss(output.tapped[BASE], output.target).mean()
