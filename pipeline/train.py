"""`repa-pipe train`: train SiT with alignment from a store. No encoder and no VAE runs: their output is in the store.

Every draw of step s (time, noise, posterior, dropped labels) is made for the whole global batch from (seed, s), and the
order of samples depends on (seed, epoch) alone. A run that was killed and resumed is therefore bit-identical to an
uninterrupted one, and the number of ranks only changes rounding.

Settings are checked before torch is imported, so that a finished run and a setting that cannot work answer at once.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from ..config import TrainConfig, paths
from ..errors import ConfigError
from ..stores import Store, open_store
from ..stores.hub import is_hub
from .artifacts.checkpoints import is_intact
from .artifacts.hub_models import with_pinned_weights, with_recorded_weights
from .artifacts.run_folder import RunFolder
from .runtime.distributed import DistributedContext, init_distributed, ranks_of_environment
from .runtime.seeds import seed_weights
from .runtime.signals import collected_signals
from .runtime.stop_file import StopFile
from .training.evaluation import evaluate_rest
from .training.guards import full_disk_error
from .training.hub_store import at_one_commit
from .training.on_ray import launch
from .training.session import owned, record_notes, recorded_session, restore_settings
from .training.setup import require_trainable, resolve

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TrainResult:
    """The run folder, and the step that training has reached: below `max_train_steps` if it was `interrupted`."""

    run: str
    step: int
    checkpoint: str
    seconds: float
    interrupted: bool = False


def run(config: TrainConfig) -> TrainResult:
    """Train to `max_train_steps`, from the last checkpoint of the run if it has one.

    Raises:
        ConfigError, StoreError, CheckpointError: the settings, the store or the checkpoint are unusable; the message
            names the flag to change.
    """
    config = at_one_commit(config)
    return train_on_ray(config) if config.uses_ray else train_rank(config)


def train_on_ray(config: TrainConfig) -> TrainResult:
    """Train on Ray workers. Results are read from the disk that all ranks share; Ray does not carry them."""
    start = time.monotonic()
    with open_store(config.store, config.store_cache) as store:
        resolved = resolve(config, store)
    run_folder = RunFolder.of(resolved)
    restore_settings(run_folder, ranks_of_environment())
    resolved = with_recorded_weights(resolved, run_folder)
    if not _is_finished(resolved, run_folder):
        launch(config, train_rank)
    return _result(resolved, run_folder, start)


def train_rank(config: TrainConfig, stop_file: StopFile | None = None) -> TrainResult:
    """Train as one rank of the process group that the environment describes, or alone if it describes none.

    Signals of STOP_SIGNALS, and the stop file if there is one, stop the training with a checkpoint.
    """
    start = time.monotonic()
    with (
        open_store(config.store, config.store_cache, config.check_reads) as store,
        collected_signals() as signals,
        full_disk_error(config.output_dir),
    ):
        config = resolve(config, store)
        run_folder, ranks = RunFolder.of(config), ranks_of_environment()
        restore_settings(run_folder, ranks)
        config = with_pinned_weights(config, run_folder)
        if not _is_finished(config, run_folder):
            require_trainable(config, store, run_folder, ranks)
            with owned(run_folder, config, ranks):
                _train(
                    config, store, run_folder, lambda: bool(signals) or (stop_file is not None and stop_file.exists())
                )
        elif ranks.is_first and (config.notes is not None or config.tag or config.eval_every):
            with owned(run_folder, config, ranks):
                record_notes(run_folder, config)
                evaluate_rest(config, run_folder, lambda: bool(signals))
        return _result(config, run_folder, start)


def _is_finished(config: TrainConfig, run_folder: RunFolder) -> bool:
    """Return whether the run has all its steps; raise ConfigError if it was trained with other settings.

    A run that is continued from another store is not finished before its last checkpoint was compared with that store.
    """
    run_folder.require_same_settings(config)
    checkpoints = run_folder.checkpoints()
    if not checkpoints or int(checkpoints[-1].stem) < config.max_train_steps:
        return False
    if not paths.same(run_folder.read_config().store, config.store) or not is_intact(checkpoints[-1]):
        return False
    _log_finished(run_folder, int(checkpoints[-1].stem))
    return True


def _log_finished(run_folder: RunFolder, step: int) -> None:
    logger.info(
        "%s already has its %s steps; nothing to do (raise --max-train-steps to continue)", run_folder.path, f"{step:,}"
    )


def _train(config: TrainConfig, store: Store, run_folder: RunFolder, stop: Callable[[], bool]) -> None:
    """Take the remaining steps as one rank."""
    import torch

    from .runtime.device import choose_device
    from .training.precision import with_precision
    from .training.trainer import Trainer

    device = choose_device(config.device)
    with init_distributed(device) as ranks:
        _require_same_commits(config, ranks)
        config = with_precision(config, run_folder, device, ranks)
        seed_weights(config.seed)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = config.allow_tf32
        trainer = Trainer(config, store, device, ranks, run_folder)
        trainer.resume()
        if ranks.is_first:
            run_folder.write_config(config)
            record_notes(run_folder, config)
        if trainer.step >= config.max_train_steps:
            _log_finished(run_folder, trainer.step)
        else:
            with recorded_session(
                run_folder, config, device, ranks, dataset=trainer.dataset, start_step=trainer.step
            ) as session:
                trainer.train(stop, session)
        ranks.barrier()  # the first rank may still be writing


def _require_same_commits(config: TrainConfig, ranks: DistributedContext) -> None:
    """Raise ConfigError if a branch of the Hub has moved while the ranks looked it up."""
    found = ", ".join(str(path) for path in (config.store, config.init_from) if is_hub(path))
    if not ranks.have_same(found):
        raise ConfigError(f"the ranks found different commits, this one {found}: pass the commit, hf://…@SHA")


def _result(config: TrainConfig, run_folder: RunFolder, start: float) -> TrainResult:
    last = run_folder.last_checkpoint()
    step, seconds = int(last.stem), round(time.monotonic() - start, 1)
    return TrainResult(str(run_folder.path), step, str(last), seconds, interrupted=step < config.max_train_steps)
