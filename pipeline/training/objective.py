"""What a training step minimizes, from what a batch holds and what the step draws at random."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from ...config import TrainConfig
from ...diffusion.interpolant import Interpolant, draw_times
from ...diffusion.loss import denoising_loss
from ...models.sit import SiT, drop_labels
from ...stores import Batch
from ..artifacts.checkpoints import StoreMetadata
from ..runtime.distributed import DistributedContext
from .terms.alignment import Alignment

LEGACY_DROPOUT = 0.1  # REPA's model drops labels with this probability in training, whatever its trainer has dropped


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """All that a step computes from, on the device: the rows of one rank, or some of them."""

    moments: Tensor  # [B, 2C, h, w]
    labels: Tensor  # [B] int64
    targets: list[Tensor]  # [B, N, D] an encoder; empty without alignment
    proj_coeff: float
    times: Tensor  # [B] float32
    noise: Tensor  # [B, C, h, w] float32
    posterior: Tensor  # [B, C, h, w] float32
    dropped: Tensor  # [B] bool: labels to drop

    def rows(self, rows: slice) -> Self:
        """Some of the rows."""
        return replace(self, **{field.name: _cut(getattr(self, field.name), rows) for field in fields(self)})


def _cut(value: Any, rows: slice) -> Any:
    if isinstance(value, list):
        return [each[rows] for each in value]
    return value[rows] if isinstance(value, Tensor) else value


class Objective(nn.Module):
    """The loss as one module, so that data-parallel wrappers and compilers see one call.

    denoising + proj_coeff * alignment (REPA, equation 8), both means over the samples given.
    """

    names: ClassVar[tuple[str, ...]] = ("loss", "denoising_loss", "alignment_loss")
    scale: Tensor
    bias: Tensor

    def __init__(self, model: SiT, config: TrainConfig, facts: StoreMetadata, alignment: Alignment) -> None:
        super().__init__()
        self.model = model
        self.alignment = alignment
        self._config = config
        self._interpolant = Interpolant(config.path_type)  # type: ignore[arg-type]  # the config has checked it
        shape = (1, -1, 1, 1)
        self.register_buffer("scale", torch.tensor(facts.latents_scale).reshape(shape), persistent=False)
        self.register_buffer("bias", torch.tensor(facts.latents_bias).reshape(shape), persistent=False)

    def inputs(self, batch: Batch, step: int, ranks: DistributedContext) -> Inputs:
        """This rank's inputs of a step: all draws are made for the whole global batch, from (seed, step)."""
        config, moments = self._config, batch.moments
        generator = torch.Generator(moments.device).manual_seed((config.seed << 32) + step)
        count = config.batch_size
        shape = (count, moments.shape[1] // 2, *moments.shape[2:])
        rows = ranks.rows(count)
        times = draw_times(config.weighting, self._interpolant, count, generator)  # type: ignore[arg-type]
        noise = torch.randn(shape, generator=generator, device=moments.device)
        posterior = torch.randn(shape, generator=generator, device=moments.device)
        dropped = torch.rand(count, generator=generator, device=moments.device) < config.cfg_prob
        if config.legacy:
            dropped |= torch.rand(count, generator=generator, device=moments.device) < LEGACY_DROPOUT
        return Inputs(
            moments=moments,
            labels=batch.labels,
            targets=self.alignment.targets(batch),
            proj_coeff=self.alignment.coefficient(step),
            times=times[rows],
            noise=noise[rows],
            posterior=posterior[rows],
            dropped=dropped[rows],
        )

    def forward(self, inputs: Inputs) -> Tensor:
        """`[3]`: the loss to minimize, and the losses that it is made of, as `names` says."""
        x_t, target = self._interpolant.interpolate(self.latents(inputs), inputs.noise, inputs.times)
        velocity, projected = self.model(x_t, inputs.times, self.labels(inputs), project=bool(inputs.targets))
        denoising = denoising_loss(velocity, target).mean()
        alignment = self.align(projected, inputs.targets, denoising)
        return torch.stack([denoising + inputs.proj_coeff * alignment, denoising, alignment])

    def latents(self, inputs: Inputs) -> Tensor:
        """Latents [B, C, h, w] float32, sampled from the posterior and scaled."""
        mean, std = inputs.moments.float().chunk(2, dim=1)
        return (mean + std * inputs.posterior) * self.scale + self.bias

    def labels(self, inputs: Inputs) -> Tensor:
        """Labels [B], some of them dropped."""
        return drop_labels(inputs.labels, inputs.dropped, self.model.config.num_classes)

    def align(self, projected: list[Tensor], targets: list[Tensor], like: Tensor) -> Tensor:
        """The alignment loss; zero without targets."""
        return self.alignment.loss(projected, targets) if targets else torch.zeros_like(like)
