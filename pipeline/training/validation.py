"""Losses of the EMA weights on held-out samples, always with the same noise, times and dropped labels.

All random draws come from separate generators, so training is not affected.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeAlias

import torch

from ...config import TrainConfig
from ...models.diffusion_model import DiffusionModel
from ...stores import Batch, Store
from ..artifacts.checkpoints import StoreMetadata
from ..runtime.device import DTYPES
from ..runtime.distributed import DistributedContext
from ..runtime.seeds import VALIDATION_STEPS, RandomStreams
from .objective import make_objective
from .parallel import reshard
from .setup import open_held_out
from .terms.term import TermContext

PREFIX = "val_"

Fetch: TypeAlias = Callable[[Callable[[], Batch]], Batch | None]


class Validation:
    """Computes the unweighted loss of every term of the objective over all complete batches of held-out samples.

    Args:
        config: the settings of the run.
        store: the store.
        ranks: the ranks; all of them must call `losses` at the same steps.
        model: the EMA model.
        metadata: scale and bias of the latents.
        device: the device of the model.
        streams: the random streams of the run.
    """

    def __init__(  # noqa: PLR0917 - called once
        self,
        config: TrainConfig,
        store: Store,
        ranks: DistributedContext,
        model: DiffusionModel,
        metadata: StoreMetadata,
        device: torch.device,
        streams: RandomStreams,
    ) -> None:
        self._config, self._ranks, self._device, self._model = config, ranks, device, model
        self._dataset = open_held_out(config, store, ranks, metadata.order)
        self._objective = make_objective(TermContext(config, store, model, streams), metadata, model).to(device)
        self.names = tuple(f"{PREFIX}{name}" for name in self._objective.names[1:])

    @torch.no_grad()
    def losses(self, step: int, fetch: Fetch = lambda read: read()) -> dict[str, float]:
        """Return the mean of every loss over all ranks, after `step` steps.

        Alignment losses are 0 once alignment has ended, as in training.

        Args:
            step: the number of steps taken.
            fetch: returns what the function that it is passed returns, once it has on all ranks (`Agreement.fetch`).
                If it returns None, the run is about to stop and there are no losses.
        """
        aligned = self._config.aligned_steps is None or step <= self._config.aligned_steps
        batches = self._dataset.steps_per_epoch
        total = torch.zeros(len(self.names), device=self._device)
        for number in range(batches):
            indices = self._dataset.indices_of_step(number)
            batch = fetch(functools.partial(self._dataset.read, indices, tokens=aligned))
            if batch is None:
                return {}
            inputs = self._objective.inputs(batch.to(self._device), VALIDATION_STEPS + number, self._ranks)
            size = len(inputs.labels) // self._config.microbatches
            for start in range(0, len(inputs.labels), size):
                precision = self._config.mixed_precision
                with torch.autocast(self._device.type, DTYPES[str(precision)], precision != "fp32"):
                    total += self._objective(inputs.rows(slice(start, start + size)))[1:]
        reshard(self._model)
        means = self._ranks.mean(total / (batches * self._config.microbatches))
        return dict(zip(self.names, means.tolist(), strict=True))
