"""The training loop: one optimizer step after another, with checkpoints, metrics and grids of images along the way."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from ...config import TrainConfig
from ...errors import CheckpointError, RankError, first_line
from ...models.architectures import key_of
from ...models.ema import Ema
from ...models.sit import current_names, load_sit_state
from ...models.weight_files import tensors_under
from ...stores import Batch, Store
from ...stores.order import OrderName
from ..artifacts.checkpoints import (
    Header,
    TrainedModel,
    load_initial_weights,
    read_header,
    save_checkpoint,
)
from ..artifacts.run_folder import RunFolder
from ..runtime.device import DTYPES, advice_when_out_of_memory
from ..runtime.distributed import DistributedContext
from ..runtime.progress import Progress, progress
from ..runtime.seeds import RandomStreams
from .agreement import Agreement
from .monitor import TrainingMonitor
from .nonfinite import NonFiniteGuard, stop_run
from .objective import make_objective
from .optimizer_state import load_optimizers, load_scaler, states_of
from .optimizers import make_optimizers
from .parallel import (
    data_parallel,
    full_tensor,
    gather_state_dict,
    gradient_sync,
    is_sharded,
    shard_model,
    shard_state_dict,
)
from .prefetch import prefetch_to_device
from .profiling import StepProfiler
from .resuming import load_same_checkpoint
from .schedule import is_due, learning_rate
from .session import SessionRecorder
from .setup import build_model, open_dataset, store_metadata
from .terms.term import Inputs, TermContext
from .utilization import mfu_per_image_rate
from .validation import Validation

if TYPE_CHECKING:
    from .sample_grid import SampleGrid

logger = logging.getLogger(__name__)

MEMORY_ADVICE = (
    "raise --microbatches or use --checkpoint-blocks, with which the run resumes (only rounding differs), or lower "
    "--batch-size for another run"
)


class Trainer:
    """A model, its EMA, its optimizer, and the step that they have reached."""

    def __init__(
        self, config: TrainConfig, store: Store, device: torch.device, ranks: DistributedContext, run_folder: RunFolder
    ) -> None:
        self.config, self.device, self.ranks, self.run_folder = config, device, ranks, run_folder
        self.step = 0
        self.streams = RandomStreams(config.seed)
        self._store = store
        self._open_samples(None)
        self.model = build_model(config, store).to(device)
        self.model.checkpoint_blocks = config.checkpoint_blocks
        self.ema = Ema(self.model, config.ema_decay)
        if config.fsdp and ranks.world_size > 1:
            shard_model(self.model)
            shard_model(self.ema.model)
        self.optimizers = make_optimizers(config, self.model)
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.mixed_precision == "fp16")
        self._monitor: TrainingMonitor | None = None  # on the first rank, while it trains
        self._agreement: Agreement  # while it trains
        self._is_updating = False  # whether weights, moments and averages may belong to different steps
        self._is_unsaved = False  # whether the error is that there is no checkpoint of this step
        if device.type == "cuda" if config.compile is None else config.compile:
            self.model.compile()
        self.objective = make_objective(
            TermContext(config, store, self.model, self.streams), self.metadata, self.ema.model
        ).to(device)
        self.nonfinite = NonFiniteGuard(device, self.objective.names, self.scaler.is_enabled())
        self._call = data_parallel(self.objective, self.model, ranks.world_size)
        self._open_validation()

    def _open_samples(self, order: OrderName | None) -> None:
        """Open the batches, in the order with which the run began; None: that of a new run."""
        self.dataset = open_dataset(self.config, self._store, self.ranks, order)
        self.metadata = store_metadata(self.config, self._store, order)

    def _open_validation(self) -> None:
        self.validation = (
            Validation(self.config, self._store, self.ranks, self.ema.model, self.metadata, self.device, self.streams)
            if self.config.val_fraction
            else None
        )

    def resume(self) -> None:
        """Load the last good checkpoint, or else --init-from; raise CheckpointError when it does not fit."""
        found = load_same_checkpoint(self.run_folder, self.ranks, self.device)
        if found is None:
            if self.config.init_from:
                weights = load_initial_weights(self.config.init_from, self.model.config.num_classes)
                self._load(weights, weights)
            return
        path, values = found
        header = read_header(values, path)
        if header.store.order != self.metadata.order:  # of a run that an earlier version began
            self.dataset.close()
            self._open_samples(header.store.order)
            self._open_validation()
        header.store.require_same(self.metadata, path)
        self._require_own_step(header, path)
        self._load(*(tensors_under(values, name, path) for name in ("model", "ema")))
        load_optimizers(self.optimizers, values.get("opt"), header.steps, path)
        load_scaler(self.scaler, values.get("scaler"), path)
        self.step = header.steps
        self.streams.version = header.random_streams
        if self.config.aligned_steps is not None and self.step > self.config.aligned_steps:
            self._freeze_projectors()
        logger.info("resuming from %s", path)

    def _require_own_step(self, header: Header, path: Path) -> None:
        """Raise CheckpointError if a checkpoint is of another step than its name, or of other settings."""
        if header.steps != int(path.stem):
            raise CheckpointError(
                f"{path} holds step {header.steps:,}: name it {self.run_folder.checkpoint(header.steps).name}, or "
                "restore it from a copy"
            )
        config = replace(self.config, vae=header.config.vae)  # the store was compared
        different = header.config.differences(config)
        if different:
            raise CheckpointError(
                f"{path} was trained with other settings than the run ({'; '.join(different)}): restore "
                f"{self.run_folder.config_file} from a copy, or use another --exp-name"
            )

    def _load(self, weights: dict[str, Tensor], averaged: dict[str, Tensor]) -> None:
        for model, values in ((self.model, weights), (self.ema.model, averaged)):
            named = current_names(values, model.config.encoder_depth)
            load_sit_state(model, shard_state_dict(named, model))

    def train(self, stop: Callable[[], bool], session: SessionRecorder | None = None) -> None:
        """Take the remaining steps, with checkpoints, metrics and grids of images along the way.

        An error ends the training after a checkpoint of the last complete step, if its state is finite.

        Args:
            stop: returns whether this rank was asked to stop. All ranks stop before the next step, with a checkpoint.
            session: records the progress of the first rank.
        """
        self._agreement = Agreement(self.ranks, stop)
        start = self.step
        with ExitStack() as stack:
            profiler = StepProfiler(self._profiled_steps(), self.run_folder, self.device)
            stack.enter_context(closing(profiler))
            if self.ranks.is_first:
                self._monitor = self._open_monitor(session)
                stack.enter_context(closing(self._monitor))
                bar = stack.enter_context(progress("train", self.config.max_train_steps, "steps", self.step))
            grid = self._sample_grid()
            stack.callback(self.dataset.close)
            waiting = self._agreement.while_waiting
            batches = stack.enter_context(closing(prefetch_to_device(self.dataset, self.device, self.step, waiting)))
            try:
                self._take_steps(batches, profiler, grid, bar if self._monitor else None)
                if self.step < self.config.max_train_steps:
                    logger.info("stopping: saving a checkpoint of step %s", f"{self.step:,}")
                    self.save()
                self._agreement.settle()
                if self._monitor and self.step >= self.config.max_train_steps:
                    self._monitor.finish_evaluations(self.step, stop)
            except Exception as error:
                if self.step > start:
                    self._save_before(error)
                raise

    def _take_steps(
        self, batches: Iterator[Batch], profiler: StepProfiler, grid: SampleGrid | None, bar: Progress | None
    ) -> None:
        config, agreement = self.config, self._agreement
        while self.step < config.max_train_steps:
            with agreement.deferred():
                profiler.before(self.step)
            waiting = time.perf_counter()
            with record_function("wait for data"):
                batch = agreement.fetch(lambda: next(batches))
            if batch is None:
                return
            waited = time.perf_counter() - waiting
            with advice_when_out_of_memory(MEMORY_ADVICE), self.ranks.others_alive():
                values = self.train_step(batch)
                self.step += 1
                validated = self._validate()
            if self._is_due(config.log_steps):
                self._require_finite()
            with agreement.deferred():
                self._report(values, waited, validated, grid, bar)
            if any(map(self._is_due, (config.checkpointing_steps, config.milestone_steps, config.eval_every))):
                self.save()
                self._evaluate()

    def _report(
        self,
        values: Tensor,
        waited: float,
        validated: dict[str, float],
        grid: SampleGrid | None,
        bar: Progress | None,
    ) -> None:
        """Log a step on the first rank, with a grid of images when it is due."""
        if self._monitor is None or bar is None:
            return
        self._monitor.log_step(self.step, values, waited, bar, validated)
        if grid and self._is_due(self.config.sampling_steps):
            image = grid.draw(self.step)
            if image is not None:
                self._monitor.log_image(self.step, image)

    def _is_due(self, every: int) -> bool:
        return is_due(every, self.step, self.config.max_train_steps)

    def _profiled_steps(self) -> range:
        """Return the steps to trace: those of `--profile-steps` that are still to be taken, on the first rank."""
        steps = self.config.profiled
        if not steps or not self.ranks.is_first:
            return range(0)
        if self.step >= steps.stop or steps.start >= self.config.max_train_steps:
            logger.warning("steps %s of --profile-steps are not traced", self.config.profile_steps)
        return steps

    def _open_monitor(self, session: SessionRecorder | None) -> TrainingMonitor:
        config, names = self.config, self.objective.names
        mfu = mfu_per_image_rate(config, self.model.config, self.device, self.ranks.world_size)
        return TrainingMonitor(config, self.run_folder, self.step, names, self.device, session, mfu)

    def _validate(self) -> dict[str, float]:
        """Return the validation losses if they are due after this step, else an empty dict."""
        if not self.validation or not self._is_due(self.config.val_steps or self.config.checkpointing_steps):
            return {}
        self._require_finite()
        return self.validation.losses(self.step, self._agreement.fetch)

    def _sample_grid(self) -> SampleGrid | None:
        if not self.config.sampling_steps or not self.ranks.is_first:
            return None
        from .sample_grid import SampleGrid  # imports a VAE, which training itself does not need

        normalization = self.objective.space.normalization
        trained = TrainedModel(self.ema.model, self.metadata, self.config, self.step, normalization)
        return SampleGrid(trained, self.run_folder, self.device, self.streams.version)

    def _require_finite(self) -> None:
        """Stop the run, and leave a checkpoint and a report, if a step so far was not finite."""
        bad = self.nonfinite.bad_step()
        if bad is None:
            return
        path, state = self.run_folder.nonfinite_checkpoint(bad.step), self._state(bad.step - 1, self.ranks.is_first)
        with self._agreement.deferred():
            if self.ranks.is_first:
                save_checkpoint(path, state)
        self._agreement.settle()  # a launcher kills ranks that are still writing when another one has ended
        self._is_unsaved = True
        stop_run(bad, self.dataset, self.run_folder, path)

    def train_step(self, batch: Batch) -> Tensor:
        """Take one optimizer step.

        Args:
            batch: this rank's batch of step `self.step`, on the device.

        Returns:
            The losses listed in `objective.names` and the gradient norm, float32 on the device.
        """
        if self.config.aligned_steps == self.step:
            self._freeze_projectors()
        optimizers = self.optimizers.values()
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = learning_rate(self.config, self.step)
        losses = self.ranks.mean(self._accumulate_gradients(self.objective.inputs(batch, self.step, self.ranks)))
        for optimizer in optimizers:
            self.scaler.unscale_(optimizer)
        norm = full_tensor(nn.utils.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm))
        values = torch.cat([losses, norm.detach().reshape(1)])
        self.nonfinite.check(self.step + 1, values, optimizers)
        self._is_updating = True
        for optimizer in optimizers:
            self.scaler.step(optimizer)
        self.scaler.update()
        self.model.zero_grad(set_to_none=True)
        self.ema.update(self.model)
        self._is_updating = False
        return values

    def _accumulate_gradients(self, inputs: Inputs) -> Tensor:
        """Accumulate the gradients of a step over its micro-batches; return the means of its losses."""
        precision, parts = str(self.config.mixed_precision), self.config.microbatches
        size = len(inputs.labels) // parts
        means = torch.zeros(len(self.objective.names), device=self.device)
        for part in range(parts):
            with gradient_sync(self._call, self.model, enabled=part == parts - 1):
                with torch.autocast(self.device.type, DTYPES[precision], precision != "fp32"):
                    losses = self._call(inputs.rows(slice(part * size, (part + 1) * size)))
                self.scaler.scale(losses[0] / parts).backward()
            means += losses.detach() / parts
        return means

    def _freeze_projectors(self) -> None:
        """Freeze the projectors once alignment has ended, since DDP must not wait for their gradients."""
        self.model.projectors.requires_grad_(False)
        self._call = self.objective  # drops the old wrapper first, and its hooks with it
        self._call = data_parallel(self.objective, self.model, self.ranks.world_size)

    def save(self) -> None:
        """Write a checkpoint of this step, and the metrics up to it; an error is deferred to the next decision."""
        self._require_finite()
        path, state = self.run_folder.checkpoint(self.step), self._state(self.step, self.ranks.is_first)
        if self._monitor is None or path.exists():
            return
        with self._agreement.deferred():
            self._is_unsaved = True
            self._monitor.write()
            save_checkpoint(path, state)
            kept = self.config.keep_checkpoints, self.config.milestone_steps, self._monitor.steps_to_evaluate
            self.run_folder.drop_old_checkpoints(*kept)
            self._is_unsaved = False

    def _evaluate(self) -> None:
        """Let the first rank evaluate the checkpoint of this step, if that is due and it was saved."""
        if self._monitor and self._is_due(self.config.eval_every) and not self._is_unsaved:
            self._monitor.evaluate(self.step)

    def _save_before(self, error: Exception) -> None:
        """Write a checkpoint of the last complete step before an error ends the run; never raise another error.

        If the ranks have agreed to end, they all take part. Otherwise others may wait in the collective calls of a
        step, and this rank writes what it has: all of the state, unless weights are sharded.
        """
        together = self._agreement.failed
        writes = self.ranks.is_first or not (together or isinstance(error, RankError))
        writes &= not self._is_unsaved
        path = self.run_folder.checkpoint(self.step)
        try:
            if self._is_updating or self.nonfinite.bad_step() or (is_sharded(self.model) and not together):
                if writes:
                    logger.warning("no checkpoint of step %s: its state is not complete", f"{self.step:,}")
                return
            state = self._state(self.step, writes)
            if writes and not path.exists():
                if self._monitor is not None:
                    self._monitor.write()
                save_checkpoint(path, state)
                logger.info("%s is saved; an error ends the run", path)
        except Exception as second:
            logger.warning("no checkpoint of step %s: %s", f"{self.step:,}", first_line(second))
        finally:
            if together:
                with suppress(RankError):
                    self.ranks.barrier()  # a launcher kills ranks that are still writing when another one has ended

    def _state(self, step: int, keep: bool) -> dict[str, Any]:
        """Return what a checkpoint holds; a collective call if weights are sharded; those are gathered."""
        return {
            "model": gather_state_dict(self.model.state_dict(), keep),
            "ema": gather_state_dict(self.ema.model.state_dict(), keep),
            "opt": gather_state_dict(states_of(self.optimizers), keep),
            "scaler": self.scaler.state_dict(),
            "steps": step,
            "random_streams": self.streams.version,
            "config": self.config.as_json(),
            key_of(self.model.config): self.model.config.to_dict(),
            "store": self.metadata.as_json(),
            **({"heads": list(self.model.heads)} if self.model.heads else {}),
            **self.objective.space.checkpoint(),
        }
