"""What a training step minimises and what it draws at random."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..config import TrainConfig
from ..diffusion.interpolant import Interpolant, draw_times
from ..diffusion.loss import alignment_loss, denoising_loss
from ..models.sit import SiT, drop_labels
from .checkpoints import StoreFacts
from .distributed import Ranks


class Objective(nn.Module):
    """The loss as one module, so that data-parallel wrappers and compilers see one call.

    denoising + proj_coeff * alignment (REPA, equation 8), both means over the samples given.
    """

    scale: Tensor
    bias: Tensor

    def __init__(self, model: SiT, config: TrainConfig, facts: StoreFacts) -> None:
        super().__init__()
        self.model = model
        self._interpolant = Interpolant(config.path_type)  # type: ignore[arg-type]  # the config has checked it
        self._weighting, self._cfg_prob, self._proj_coeff = config.weighting, config.cfg_prob, config.proj_coeff
        shape = (1, -1, 1, 1)
        self.register_buffer("scale", torch.tensor(facts.latents_scale).reshape(shape), persistent=False)
        self.register_buffer("bias", torch.tensor(facts.latents_bias).reshape(shape), persistent=False)

    def forward(self, moments: Tensor, labels: Tensor, tokens: list[Tensor], draws: Draws) -> tuple[Tensor, Tensor]:
        """The loss, and `[2]`: denoising and alignment loss."""
        mean, std = moments.float().chunk(2, dim=1)
        latents = (mean + std * draws.posterior) * self.scale + self.bias
        x_t, target = self._interpolant.interpolate(latents, draws.noise, draws.times)
        labels = drop_labels(labels, draws.dropped, self.model.config.num_classes)
        velocity, projected = self.model(x_t, draws.times, labels, project=bool(tokens))
        denoising = denoising_loss(velocity, target).mean()
        alignment = alignment_loss(projected, tokens) if tokens else torch.zeros_like(denoising)
        return denoising + self._proj_coeff * alignment, torch.stack([denoising, alignment])


@dataclass(frozen=True, slots=True)
class Draws:
    """All that is random in a step, for the rows of one rank."""

    times: Tensor  # [B] float32
    noise: Tensor  # [B, C, h, w] float32
    posterior: Tensor  # [B, C, h, w] float32
    dropped: Tensor  # [B] bool

    @classmethod
    def of_step(cls, config: TrainConfig, step: int, moments: Tensor, ranks: Ranks) -> Draws:
        """Draw for the whole global batch from (seed, step), keep this rank's rows."""
        generator = torch.Generator(moments.device).manual_seed((config.seed << 32) + step)
        count = config.batch_size
        shape = (count, moments.shape[1] // 2, *moments.shape[2:])
        share = count // ranks.world_size
        rows = slice(ranks.rank * share, (ranks.rank + 1) * share)
        interpolant = Interpolant(config.path_type)  # type: ignore[arg-type]
        times = draw_times(config.weighting, interpolant, count, generator)  # type: ignore[arg-type]
        noise = torch.randn(shape, generator=generator, device=moments.device)
        posterior = torch.randn(shape, generator=generator, device=moments.device)
        dropped = torch.rand(count, generator=generator, device=moments.device) < config.cfg_prob
        return cls(times, noise, posterior, dropped).rows(rows)

    def rows(self, rows: slice) -> Draws:
        """Some of the rows."""
        return Draws(self.times[rows], self.noise[rows], self.posterior[rows], self.dropped[rows])
