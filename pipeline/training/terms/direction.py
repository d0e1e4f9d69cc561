"""The cosine distance between predicted and true velocity (LightningDiT, arXiv 2501.01423)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from ....diffusion.loss import direction_loss
from ....models.diffusion_model import DiffusionModel
from .term import ModelOutput, Prepared, Term


class DirectionTerm(Term):
    """Mean over samples of the cosine distance of the velocity at each position, times `--cosine-coeff`."""

    metric: ClassVar[str] = "cosine_loss"

    def __init__(self, model: DiffusionModel, coefficient: float) -> None:
        self._latents_of, self._coefficient = model.latents_of, coefficient

    def weight(self, step: int) -> float:
        """Return `--cosine-coeff`."""
        return self._coefficient

    def loss(self, output: ModelOutput, prepared: Prepared) -> Tensor:
        """Return the mean over the samples."""
        return direction_loss(self._latents_of(output.velocity), self._latents_of(output.target)).mean()
