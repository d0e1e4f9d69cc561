"""The training objective: a weighted sum of terms, computed from a batch and the random draws of its step.

Times, noise, posterior and dropped labels are drawn here, for the whole global batch, from (seed, step).
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from ...config import TrainConfig
from ...diffusion.interpolant import Interpolant, draw_times
from ...diffusion.posterior import with_epsilon
from ...diffusion.times import shifted
from ...models.class_token import ClassTokenModel
from ...models.diffusion_model import DiffusionModel
from ...models.raev2.model import BASE
from ...models.sit import drop_labels
from ...models.srdit.model import SRDiT
from ...stores import Batch, Store
from ...stores.layout import FIXED
from ..artifacts.checkpoints import StoreMetadata
from ..runtime.distributed import DistributedContext
from ..runtime.seeds import RandomStreams, Stream
from ..spaces.fixed import FixedSpace
from ..spaces.moments import MomentsSpace
from ..spaces.space import Space
from ..spaces.tokens import token_space
from .model_config import LEGACY_DROPOUT, group_of_latents
from .routing import draw_routing
from .terms.alignment import AlignmentTerm
from .terms.base_head import BaseHeadTerm
from .terms.class_token import ClassTokenTerm
from .terms.denoising import DenoisingTerm
from .terms.direction import DirectionTerm
from .terms.term import ModelOutput, Prepared, Term


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """All inputs of a step, on the device: the rows of one rank, or some of them."""

    latents: Tensor  # [B, …], as the space reads them from the batch: moments [B, 2C, h, w], or tokens [B, C, h, w]
    labels: Tensor  # [B] int64
    times: Tensor  # [B] float32
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


class Objective(nn.Module):
    """Sum over terms of weight times loss; one module, so that data-parallel wrappers see one call.

    Args:
        model: the model to train.
        config: the settings of the run.
        space: what the latents are made of.
        streams: the random streams of the run.
        terms: the terms; `inputs.terms[i]` and `inputs.weights[i]` belong to term i.
    """

    def __init__(
        self, model: DiffusionModel, config: TrainConfig, space: Space, streams: RandomStreams, terms: list[Term]
    ) -> None:
        super().__init__()
        self.model, self.space = model, space
        self._streams = streams
        self.terms = terms
        self.names = ("loss", *(term.metric for term in terms))  # of the values that `forward` returns
        self._config = config
        self._interpolant = Interpolant(config.path_type)
        taps = tuple(dict.fromkeys(tap for term in terms for tap in term.taps))
        self._taps: dict[str, Any] = {"taps": taps} if taps else {}

    def inputs(self, batch: Batch, step: int, ranks: DistributedContext) -> Inputs:
        """Return this rank's inputs of a step."""
        config, latents = self._config, self.space.stored(batch)
        device = latents.device
        generator = self._streams.generator(Stream.STEP, step, device)
        count = config.batch_size
        shape = (count, *self.space.shape(latents))
        rows = ranks.rows(count)
        times = draw_times(
            config.weighting, self._interpolant, count, generator, mean=config.time_mean, std=config.time_std
        )
        if config.time_shift != 1:
            times = shifted(times, config.time_shift)
        noise = torch.randn(shape, generator=generator, device=device)
        draws = self.space.draws_posterior
        posterior = torch.randn(shape, generator=generator, device=device) if draws else None
        dropped = torch.rand(count, generator=generator, device=device) < config.cfg_prob
        if config.legacy:
            dropped |= torch.rand(count, generator=generator, device=device) < LEGACY_DROPOUT
        return Inputs(
            latents=latents,
            labels=batch.labels,
            times=times[rows],
            noise=noise[rows],
            posterior=None if posterior is None else posterior[rows],
            dropped=dropped[rows],
            routing=self._routing(step, rows, device),
            terms=[term.prepare(batch, step, ranks) for term in self.terms],
            weights=[term.weight(step) for term in self.terms],
        )

    def _routing(self, step: int, rows: slice, device: torch.device) -> dict[str, Tensor]:
        """Return which tokens and paths are dropped in this rank's rows; nothing for other models than SR-DiT."""
        if not isinstance(self.model, SRDiT):
            return {}
        generator = self._streams.generator(Stream.ROUTING, step, device)
        drawn = draw_routing(self.model.num_tokens, self._config.batch_size, generator)
        return {name: value[rows] for name, value in drawn.items()}

    def forward(self, inputs: Inputs) -> Tensor:
        """Return the loss to minimize and the unweighted loss of each term, in the order of `names`."""
        data, noise = self.state(inputs)
        x_t, target = self._interpolant.interpolate(data, noise, inputs.times)
        project = any(term.needs_projection(each) for term, each in zip(self.terms, inputs.terms, strict=True))
        labels = drop_labels(inputs.labels, inputs.dropped, self.model.config.num_classes)
        target = self.model.target(x_t, target, data, inputs.times)
        options = self._taps | inputs.routing
        velocity, projected, *tapped = self.model(x_t, inputs.times, labels, project=project, **options)
        output = ModelOutput(velocity, target, projected, tapped[0] if tapped else {})
        losses = [term.loss(output, each) for term, each in zip(self.terms, inputs.terms, strict=True)]
        total = losses[0] * inputs.weights[0]
        for loss, weight in zip(losses[1:], inputs.weights[1:], strict=True):
            total = total + weight * loss
        return torch.stack([total, *losses])

    def state(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Return data and noise as the model's state: latents [B, C, h, w], as extended by the terms."""
        data, noise = self.latents(inputs), inputs.noise * self.model.noise_scale
        for term, prepared in zip(self.terms, inputs.terms, strict=True):
            data, noise = term.extend(data, noise, prepared)
        return data, noise

    def latents(self, inputs: Inputs) -> Tensor:
        """Return x0 [B, C, h, w] float32: drawn from the posterior, if any, and normalized."""
        return self.space.data(inputs.latents, inputs.posterior)


def make_objective(
    model: DiffusionModel, config: TrainConfig, store: Store, metadata: StoreMetadata, streams: RandomStreams
) -> Objective:
    """Build the objective of a config: denoising, alignment, and the terms of what the model has besides."""
    space = make_space(config, store, metadata)
    terms: list[Term] = [DenoisingTerm(model), AlignmentTerm(config, store)]
    if isinstance(model, ClassTokenModel):
        terms.append(ClassTokenTerm(config, model, streams))
    if config.cosine_coeff:
        terms.append(DirectionTerm(model, config.cosine_coeff))
    if BASE in model.taps:
        terms.append(BaseHeadTerm())
    return Objective(model, config, space, streams, terms)


def make_space(config: TrainConfig, store: Store, metadata: StoreMetadata) -> Space:
    """Build the space of the latents: a VAE's, drawn in every step or once, or tokens with `--token-latents`."""
    if config.token_latents:
        return token_space(store, config.token_latents)
    scale, bias = with_epsilon(metadata.latents_scale, metadata.latents_bias, config.latents_eps)
    is_fixed = store.group(group_of_latents(config)).latents_array == FIXED
    return FixedSpace(scale, bias) if is_fixed else MomentsSpace(scale, bias)
