"""`repa-pipe train`: train SiT with alignment from a store. No encoder and no VAE runs: their output is in the store.

Every draw of step s (time, noise, posterior, dropped labels) is made for the whole global batch from (seed, s), and the
order of samples depends on (seed, epoch) alone. A run that was killed and resumed is therefore bit-identical to an
uninterrupted one, and the number of ranks only changes rounding.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from ..config import TrainConfig
from ..stores import open_store
from .artifacts.run_folder import RunFolder
from .runtime.device import choose_device
from .runtime.distributed import init_distributed
from .runtime.signals import collected_signals
from .training.guards import full_disk_error
from .training.on_ray import launch
from .training.session import record_notes, recorded_session
from .training.setup import resolve
from .training.trainer import Trainer

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TrainResult:
    """The run folder, and the step that training has reached."""

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
    return train_on_ray(config) if config.uses_ray else train_rank(config)


def train_on_ray(config: TrainConfig) -> TrainResult:
    """Train on Ray workers. Results are read from the disk that all ranks share; Ray does not carry them."""
    start = time.monotonic()
    with open_store(config.store, config.store_cache) as store:
        run_folder = RunFolder(Path(config.output_dir) / str(resolve(config, store).exp_name))
    launch(config, train_rank)
    last = run_folder.last_checkpoint()
    return TrainResult(str(run_folder.path), int(last.stem), str(last), round(time.monotonic() - start, 1))


def train_rank(config: TrainConfig) -> TrainResult:
    """Train as one rank of the process group that the environment describes, or alone if it describes none."""
    start = time.monotonic()
    device = choose_device(config.device)
    with (
        init_distributed(device) as ranks,
        open_store(config.store, config.store_cache) as store,
        collected_signals() as signals,
        full_disk_error(config.output_dir),
    ):
        config = resolve(config, store)
        run_folder = RunFolder(Path(config.output_dir) / str(config.exp_name))
        run_folder.require_same_settings(config)
        torch.manual_seed(config.seed)  # for the initial weights
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = config.allow_tf32
        trainer = Trainer(config, store, device, ranks, run_folder)
        trainer.resume()
        if ranks.is_first:
            run_folder.write_config(config)
            record_notes(run_folder, config)
        if trainer.step >= config.max_train_steps:
            logger.info(
                "%s already has its %s steps; nothing to do (raise --max-train-steps to continue)",
                run_folder.path,
                f"{trainer.step:,}",
            )
        else:
            with recorded_session(run_folder, config, device, ranks, trainer.step) as session:
                trainer.train(signals, session)
        ranks.barrier()  # the first rank may still be writing
        last = str(run_folder.last_checkpoint())
        seconds = round(time.monotonic() - start, 1)
        return TrainResult(str(run_folder.path), trainer.step, last, seconds, bool(signals))
