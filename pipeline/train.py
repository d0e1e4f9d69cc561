"""`repa-pipe train`: from a store to checkpoints. No encoder, no VAE: both are in the store.

Every draw of step s (time, noise, posterior, dropped labels) is made for the whole global batch from a generator
seeded by (seed, s), and the order of samples comes from (seed, epoch): a killed run that is started again goes on as
if nothing had happened, and the number of ranks changes nothing but rounding.
"""

from __future__ import annotations

import time
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..config import TrainConfig
from ..models.ema import Ema
from ..models.sit import load_sit_state
from ..stores import Batch, Store, open_store
from ..stores.files import write_json
from .artifacts.checkpoints import (
    StoreMetadata,
    TrainedModel,
    broken_path,
    checkpoint_path,
    drop_old_checkpoints,
    list_checkpoints,
    load_averaged_weights,
    load_checkpoint,
    save_checkpoint,
)
from .artifacts.metrics_log import TrainingMonitor
from .runtime.device import DTYPES, choose_device, out_of_memory_names
from .runtime.distributed import DistributedContext, init_distributed
from .runtime.progress import progress, say
from .training.guards import CONFIG_FILE, full_disk_is_named, interruptible, require_same_run, require_same_store
from .training.nonfinite import NonFiniteGuard, stop_run
from .training.objective import Inputs
from .training.parallel import collect, optimizer_shards_of, shard, shards_of, sharing_gradients, whole, wrap
from .training.prefetch import prefetch_to_device
from .training.setup import build_model, open_dataset, resolve, store_metadata
from .training.terms.alignment import Alignment
from .training.terms.class_token import make_objective

if TYPE_CHECKING:
    from .training.sample_grid import SampleGrid

MEMORY_FLAGS = (
    "raise --microbatches, which leaves the result as it is, or take --checkpoint-blocks, or lower --batch-size"
)


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a run of `train` did."""

    run: str
    step: int
    checkpoint: str
    seconds: float
    interrupted: bool = False


def run(config: TrainConfig) -> TrainResult:
    """Train to `max_train_steps`, from the last checkpoint of the run if it has one.

    Raises ConfigError, StoreError, CheckpointError for what cannot work, naming the flag to change.
    """
    if config.ray:
        from .training.on_ray import run_on_ray

        return run_on_ray(config)
    start = time.monotonic()
    device = choose_device(config.device)
    with (
        init_distributed(device) as ranks,
        open_store(config.store, config.store_cache) as store,
        interruptible() as interrupted,
        full_disk_is_named(config.output_dir),
    ):
        config = resolve(config, store)
        run_dir = Path(config.output_dir) / str(config.exp_name)
        require_same_run(run_dir, config)
        trainer = Trainer(config, store, device, ranks, run_dir)
        trainer.resume()
        if ranks.is_first:
            write_json(run_dir / CONFIG_FILE, config.as_json())
        if trainer.step >= config.max_train_steps:
            say(f"{run_dir} has its {trainer.step:,} steps; nothing to do (raise --max-train-steps to go on)")
        else:
            trainer.train(interrupted)
        ranks.barrier()  # the first rank may still be writing
        last = str(list_checkpoints(run_dir)[-1])
        return TrainResult(str(run_dir), trainer.step, last, round(time.monotonic() - start, 1), bool(interrupted))


class Trainer:
    """A model, its average, its optimizer, and the step that they have reached."""

    def __init__(
        self, config: TrainConfig, store: Store, device: torch.device, ranks: DistributedContext, run_dir: Path
    ) -> None:
        self.config, self.device, self.ranks, self.run_dir = config, device, ranks, run_dir
        self.step = 0
        self.dataset = open_dataset(config, store, ranks)
        self.facts = store_metadata(config, store)
        torch.manual_seed(config.seed)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = config.allow_tf32
        self.model = build_model(config, store).to(device)
        self.model.checkpoint_blocks = config.checkpoint_blocks
        self.ema = Ema(self.model, config.ema_decay)
        if config.fsdp and ranks.world_size > 1:
            shard(self.model)
            shard(self.ema.model)
        self.optimizer = torch.optim.AdamW(
            [weight for weight in self.model.parameters() if weight.requires_grad],
            lr=config.learning_rate,
            betas=(config.adam_beta1, config.adam_beta2),
            weight_decay=config.adam_weight_decay,
            eps=config.adam_epsilon,
            fused=True,
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.mixed_precision == "fp16")
        self._watch: TrainingMonitor | None = None  # on the first rank, while it trains
        if device.type == "cuda" if config.compile is None else config.compile:
            self.model.compile()
        self._objective = make_objective(self.model, config, self.facts, Alignment(config, store)).to(device)
        self.nonfinite = NonFiniteGuard(device, self._objective.names, self.scaler.is_enabled())
        self._call = wrap(self._objective, self.model, ranks.world_size)

    def resume(self) -> None:
        """Go on from the last checkpoint, or start from --init-from; CheckpointError when these do not fit."""
        there = list_checkpoints(self.run_dir)
        if not there:
            if self.config.init_from:
                weights = load_averaged_weights(self.config.init_from)
                self._load(weights, weights)
            return
        values = load_checkpoint(there[-1])
        require_same_store(StoreMetadata.from_json(values["store"]), self.facts, there[-1])
        self._load(values["model"], values["ema"])
        self.optimizer.load_state_dict(optimizer_shards_of(values["opt"], self.optimizer))
        self.scaler.load_state_dict(values["scaler"])
        self.step = values["steps"]
        if self.config.aligned_steps is not None and self.step > self.config.aligned_steps:
            self._freeze_projectors()
        say(f"going on from {there[-1]}")

    def _load(self, weights: dict[str, Tensor], averaged: dict[str, Tensor]) -> None:
        for model, values in ((self.model, weights), (self.ema.model, averaged)):
            load_sit_state(model, shards_of(values, model))

    def train(self, interrupted: list[int]) -> None:
        """Take the steps that are left, with checkpoints, metrics and pictures on the way."""
        config = self.config
        with ExitStack() as stack:
            if self.ranks.is_first:
                self._watch = TrainingMonitor(config, self.run_dir, self.step, self._objective.names)
                stack.enter_context(closing(self._watch))
                bar = stack.enter_context(progress("train", config.max_train_steps, "steps", self.step))
            grid = self._sample_grid()
            stack.callback(self.dataset.close)
            batches = stack.enter_context(closing(prefetch_to_device(self.dataset, self.device, self.step)))
            while self.step < config.max_train_steps and not self._stopped(interrupted):
                waiting = time.perf_counter()
                batch = next(batches)
                waited = time.perf_counter() - waiting
                with out_of_memory_names(MEMORY_FLAGS):
                    values = self.train_step(batch)
                self.step += 1
                if self._due(config.log_steps):
                    self._require_finite()
                if self._watch:
                    self._watch.observe(self.step, values, waited, bar)
                if self._watch and grid and self._due(config.sampling_steps):
                    self._watch.picture(self.step, grid.draw(self.step))
                if self._due(config.checkpointing_steps) or self._due(config.milestone_steps):
                    self.save()
            if self.step < config.max_train_steps:
                self.save()

    def _stopped(self, interrupted: list[int]) -> bool:
        """Whether to end now; several ranks must agree on the step, which they do when metrics are due."""
        if self.ranks.world_size == 1:
            return bool(interrupted)
        return self._due(self.config.log_steps) and self.ranks.any(bool(interrupted), self.device)

    def _due(self, every: int) -> bool:
        return bool(every) and (self.step % every == 0 or self.step == self.config.max_train_steps)

    def _sample_grid(self) -> SampleGrid | None:
        if not self.config.sampling_steps or not self.ranks.is_first:
            return None
        from .training.sample_grid import SampleGrid  # imports a VAE, which training itself does without

        trained = TrainedModel(self.ema.model, self.facts, self.config, self.step)
        return SampleGrid(trained, self.run_dir, self.device)

    def _require_finite(self) -> None:
        """Stop the run, with all that is known, when a step up to now was not finite."""
        bad = self.nonfinite.bad_step()
        if bad is None:
            return
        path, state = broken_path(self.run_dir, bad.step), self._state(bad.step - 1)
        if self.ranks.is_first:
            save_checkpoint(path, state)
        stop_run(bad, self.dataset, self.run_dir, path)

    def train_step(self, batch: Batch) -> Tensor:
        """One optimizer step; the objective's losses and the gradient norm, left on the device."""
        if self.config.aligned_steps == self.step:
            self._freeze_projectors()
        losses = self.ranks.mean(self._gradients(self._objective.inputs(batch, self.step, self.ranks)))
        self.scaler.unscale_(self.optimizer)
        norm = whole(nn.utils.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm))
        values = torch.cat([losses, norm.detach().reshape(1)])
        self.nonfinite.check(self.step + 1, values, self.optimizer)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.update(self.model)
        return values

    def _gradients(self, inputs: Inputs) -> Tensor:
        """Sum up the gradients of a step, part by part; the means of its losses."""
        precision, parts = self.config.mixed_precision, self.config.microbatches
        size = len(inputs.labels) // parts
        means = torch.zeros(len(self._objective.names), device=self.device)
        for part in range(parts):
            with sharing_gradients(self._call, self.model, part == parts - 1):
                with torch.autocast(self.device.type, DTYPES[precision], precision != "fp32"):
                    losses = self._call(inputs.rows(slice(part * size, (part + 1) * size)))
                self.scaler.scale(losses[0] / parts).backward()
            means += losses.detach() / parts
        return means

    def _freeze_projectors(self) -> None:
        """Alignment has ended: projectors get no more gradients, and data parallelizm must not wait for them."""
        self.model.projectors.requires_grad_(False)
        self._call = self._objective  # the wrapper there was goes first, and with it its hooks
        self._call = wrap(self._objective, self.model, self.ranks.world_size)

    def save(self) -> None:
        """Write a checkpoint of this step and what was measured up to it."""
        self._require_finite()
        path, state = checkpoint_path(self.run_dir, self.step), self._state(self.step)
        if self._watch is None or path.exists():
            return
        self._watch.write()
        save_checkpoint(path, state)
        drop_old_checkpoints(self.run_dir, self.config.keep_checkpoints, self.config.milestone_steps)

    def _state(self, step: int) -> dict[str, Any]:
        keep = self.ranks.is_first
        return {
            "model": collect(self.model.state_dict(), keep),
            "ema": collect(self.ema.model.state_dict(), keep),
            "opt": collect(self.optimizer.state_dict(), keep),
            "scaler": self.scaler.state_dict(),
            "steps": step,
            "config": self.config.as_json(),
            "sit": self.model.config.to_dict(),
            "store": self.facts.as_json(),
        }
