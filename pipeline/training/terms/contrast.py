"""Contrastive flow matching (arXiv 2506.05350): the velocity is moved away from the target of another sample."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from ....diffusion.loss import contrastive_loss, previous_samples
from ....models.srdit.model import SRDiT
from ....stores import Batch
from ...runtime.distributed import DistributedContext
from ...runtime.seeds import Stream
from .term import ModelOutput, Prepared, Term, TermContext

PARTNER, PARTNER_TARGET = "partner", "partner_target"


def partners(draws: Tensor) -> Tensor:
    """Return the partner of each sample, given draws from 0 to B - 2 [B]: never the sample itself."""
    own = torch.arange(len(draws), device=draws.device)
    return draws + (draws >= own)


class ContrastTerm(Term):
    """Minus `--contrast-coeff` times the mean squared error of the velocity to the partner's target.

    Partners are drawn from the global batch, whatever their labels; also samples without a label take part. In SR-DiT,
    the partner is the previous sample.
    """

    metric: ClassVar[str] = "contrastive_loss"
    needs_targets: ClassVar[bool] = True

    def __init__(self, context: TermContext) -> None:
        self._config, self._streams = context.config, context.streams
        self._latents_of = context.model.latents_of
        self._is_previous = isinstance(context.model, SRDiT)

    def prepare(self, batch: Batch, step: int, ranks: DistributedContext) -> Prepared:
        """Return the `partner` of each of this rank's rows, [B] int64, drawn for the whole global batch."""
        count, device = self._config.batch_size, batch.labels.device
        if self._is_previous:
            return {PARTNER: previous_samples(count, device)[ranks.rows(count)]}
        generator = self._streams.generator(Stream.PARTNER, step, device)
        draws = torch.randint(count - 1, (count,), generator=generator, device=device)
        return {PARTNER: partners(draws)[ranks.rows(count)]}

    def add_targets(self, prepared: Prepared, target: Tensor, ranks: DistributedContext) -> Prepared:
        """Return the partner's target of the latents, `partner_target` [B, C, h, w]."""
        return {PARTNER_TARGET: ranks.gather(self._latents_of(target))[prepared[PARTNER]]}

    def weight(self, step: int) -> float:
        """Return minus `--contrast-coeff`."""
        return -self._config.contrast_coeff

    def loss(self, output: ModelOutput, prepared: Prepared) -> Tensor:
        """Return the mean over the samples."""
        own = torch.arange(len(output.velocity), device=output.velocity.device)
        return contrastive_loss(self._latents_of(output.velocity), prepared[PARTNER_TARGET], own).mean()
