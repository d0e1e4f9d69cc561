"""The denoising loss: mean squared error of the velocity of the latents (REPA, equation 2)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from ....diffusion.loss import denoising_loss
from ....models.diffusion_model import DiffusionModel
from .term import ModelOutput, Prepared, Term


class DenoisingTerm(Term):
    """Mean over samples of the denoising loss of the latents."""

    metric: ClassVar[str] = "denoising_loss"

    def __init__(self, model: DiffusionModel) -> None:
        self._latents_of = model.latents_of

    def loss(self, output: ModelOutput, prepared: Prepared) -> Tensor:
        """Return the mean over the samples."""
        return denoising_loss(self._latents_of(output.velocity), self._latents_of(output.target)).mean()
