"""The training objective: a weighted sum of terms, computed from a batch and the random draws of its step.

Times, noise, posterior and dropped labels are drawn here, for the whole global batch, from (seed, step).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...config import TrainConfig
from ...diffusion.interpolant import Interpolant, draw_times
from ...diffusion.posterior import with_epsilon
from ...diffusion.times import shifted
from ...diffusion.token_times import over_pixels
from ...models.diffusion_model import DiffusionModel
from ...models.sit import drop_labels
from ...models.sit.model import block_tap
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
from .parallel import reshard
from .routing import draw_routing
from .terms.registry import make_terms
from .terms.term import Inputs, ModelOutput, TeacherCall, Term, TermContext
from .token_times import draw_token_times


class Objective(nn.Module):
    """Sum over terms of weight times loss; one module, so that data-parallel wrappers see one call.

    Args:
        model: the model to train.
        config: the settings of the run.
        space: what the latents are made of.
        streams: the random streams of the run.
        terms: the terms; `inputs.terms[i]` and `inputs.weights[i]` belong to term i.
        teacher: the EMA of the model; not a part of the module, since it is not trained.
    """

    def __init__(  # noqa: PLR0917 - called once
        self,
        model: DiffusionModel,
        config: TrainConfig,
        space: Space,
        streams: RandomStreams,
        terms: list[Term],
        teacher: DiffusionModel,
    ) -> None:
        super().__init__()
        self.model, self.space = model, space
        self._streams = streams
        self.terms = terms
        self.names = ("loss", *(term.metric for term in terms))  # of the values that `forward` returns
        self._config = config
        self._interpolant = Interpolant(config.path_type)
        self._teacher = (teacher,)  # in a tuple, torch does not see it

    def inputs(self, batch: Batch, step: int, ranks: DistributedContext) -> Inputs:
        """Return this rank's inputs of a step."""
        config, latents = self._config, self.space.stored(batch)
        device = latents.device
        generator = self._streams.generator(Stream.STEP, step, device)
        count = config.batch_size
        shape = (count, *self.space.shape(latents))
        rows = ranks.rows(count)
        draw = partial(_draw_times, config, self._interpolant, count)
        times, groups = draw(generator), None
        noise = torch.randn(shape, generator=generator, device=device)
        draws = self.space.draws_posterior
        posterior = torch.randn(shape, generator=generator, device=device) if draws else None
        dropped = torch.rand(count, generator=generator, device=device) < config.cfg_prob
        if config.legacy:
            dropped |= torch.rand(count, generator=generator, device=device) < LEGACY_DROPOUT
        if config.token_groups:
            times, groups = draw_token_times(
                times,
                config.token_groups,
                self._num_tokens,
                draw,
                self._streams.generator(Stream.TOKEN_TIMES, step, device),
            )
        inputs = Inputs(
            latents=latents,
            labels=batch.labels,
            times=times[rows],
            groups=None if groups is None else groups[rows],
            noise=noise[rows],
            posterior=None if posterior is None else posterior[rows],
            dropped=dropped[rows],
            routing=self._routing(step, rows, device),
            terms=[term.prepare(batch, step, ranks) for term in self.terms],
            weights=[term.weight(step) for term in self.terms],
        )
        return self._with_targets(inputs, ranks)

    def _with_targets(self, inputs: Inputs, ranks: DistributedContext) -> Inputs:
        """Let the terms that need targets add to what they prepared."""
        if not any(term.needs_targets for term in self.terms):
            return inputs
        target = self._path(*self.state(inputs), inputs.times)[1]
        added = [
            term.add_targets(prepared, target, ranks) if term.needs_targets else prepared
            for term, prepared in zip(self.terms, inputs.terms, strict=True)
        ]
        return replace(inputs, terms=added)

    def _path(self, data: Tensor, noise: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
        """Return the model's input and target at times [B], or per token [B, N]."""
        return self._interpolant.interpolate(
            data, noise, times if times.ndim == 1 else over_pixels(times, data.shape[-1])
        )

    @property
    def _num_tokens(self) -> int:
        """Number of tokens of the model's grid."""
        side: int = self.model.grid_size  # type: ignore[assignment]  # of a SiT; others are refused
        return side**2

    def _routing(self, step: int, rows: slice, device: torch.device) -> dict[str, Tensor]:
        """Return which tokens and paths are dropped in this rank's rows; nothing for other models than SR-DiT."""
        if not isinstance(self.model, SRDiT):
            return {}
        generator = self._streams.generator(Stream.ROUTING, step, device)
        drawn = draw_routing(self.model.num_tokens, self._config.batch_size, generator)
        return {name: value[rows] for name, value in drawn.items()}

    def _taps(self, inputs: Inputs) -> dict[str, Any]:
        """Return the argument that asks the model for what terms read of it; none if they read nothing."""
        pairs = zip(self.terms, inputs.terms, strict=True)
        taps = tuple(dict.fromkeys(tap for term, each in pairs if term.needs_taps(each) for tap in term.taps))
        return {"taps": taps} if taps else {}

    def forward(self, inputs: Inputs) -> Tensor:
        """Return the loss to minimize and the unweighted loss of each term, in the order of `names`."""
        data, noise = self.state(inputs)
        x_t, target = self._path(data, noise, inputs.times)
        project = any(term.needs_projection(each) for term, each in zip(self.terms, inputs.terms, strict=True))
        labels = drop_labels(inputs.labels, inputs.dropped, self.model.config.num_classes)
        target = self.model.target(x_t, target, data, inputs.times)
        options = self._taps(inputs) | inputs.routing
        if self._config.separate_attention:
            options |= {"groups": inputs.groups}
        velocity, projected, *tapped = self.model(x_t, inputs.times, labels, project=project, **options)
        told = self._ask_teacher(inputs, labels, data, noise)
        losses = [
            term.loss(ModelOutput(velocity, target, projected, tapped[0] if tapped else {}, by_teacher), each)
            for term, by_teacher, each in zip(self.terms, told, inputs.terms, strict=True)
        ]
        total = losses[0] * inputs.weights[0]
        for loss, weight in zip(losses[1:], inputs.weights[1:], strict=True):
            total = total + weight * loss
        return torch.stack([total, *losses])

    @torch.no_grad()
    def _ask_teacher(self, inputs: Inputs, labels: Tensor, data: Tensor, noise: Tensor) -> list[Mapping[str, Tensor]]:
        """Return, per term, what it asked the teacher for; calls of the same key are answered together."""
        pairs = zip(self.terms, inputs.terms, strict=True)
        calls = [term.ask_teacher(inputs, labels, prepared) for term, prepared in pairs]
        blocks: dict[str, set[int]] = {}
        for call in calls:
            if call is not None:
                blocks.setdefault(call.key, set()).update(call.blocks)
        answers: dict[str, Mapping[str, Tensor]] = {}
        for call in calls:
            if call is not None and call.key not in answers:
                answers[call.key] = self._answer(call, blocks[call.key], data, noise)
        return [{} if call is None else answers[call.key] for call in calls]

    def _answer(self, call: TeacherCall, blocks: set[int], data: Tensor, noise: Tensor) -> Mapping[str, Tensor]:
        numbers = sorted(blocks)
        x_t, _ = self._path(data, noise, call.times)
        states = self._teacher[0].hidden_states(x_t, call.times, call.labels, numbers, call.groups)
        reshard(self._teacher[0])
        return {block_tap(number): state for number, state in zip(numbers, states, strict=True)}

    def state(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Return data and noise as the model's state: latents [B, C, h, w], as extended by the terms."""
        data, noise = self.latents(inputs), inputs.noise * self.model.noise_scale
        for term, prepared in zip(self.terms, inputs.terms, strict=True):
            data, noise = term.extend(data, noise, prepared)
        return data, noise

    def latents(self, inputs: Inputs) -> Tensor:
        """Return x0 [B, C, h, w] float32: drawn from the posterior, if any, and normalized."""
        return self.space.data(inputs.latents, inputs.posterior)


def _draw_times(config: TrainConfig, interpolant: Interpolant, count: int, generator: torch.Generator) -> Tensor:
    times = draw_times(config.weighting, interpolant, count, generator, mean=config.time_mean, std=config.time_std)
    return times if config.time_shift == 1 else shifted(times, config.time_shift)


def make_objective(context: TermContext, metadata: StoreMetadata, teacher: DiffusionModel) -> Objective:
    """Build the objective of a config.

    Args:
        context: the settings, the store, the random streams, and the model with the heads of its terms
            (`attach_heads`).
        metadata: scale and bias of the latents.
        teacher: the EMA of the model, which some terms ask.
    """
    space = make_space(context.config, context.store, metadata)
    return Objective(context.model, context.config, space, context.streams, make_terms(context), teacher)


def make_space(config: TrainConfig, store: Store, metadata: StoreMetadata) -> Space:
    """Build the space of the latents: a VAE's, drawn in every step or once, or tokens with `--token-latents`."""
    if config.token_latents:
        return token_space(store, config.token_latents)
    scale, bias = with_epsilon(metadata.latents_scale, metadata.latents_bias, config.latents_eps)
    is_fixed = store.group(group_of_latents(config)).latents_array == FIXED
    return FixedSpace(scale, bias) if is_fixed else MomentsSpace(scale, bias)
