"""The ranks of a training run on Ray, under Ray Train's TorchTrainer: a thin launcher of the same function."""

from __future__ import annotations

import dataclasses
import os
import shutil
import time
import uuid
from pathlib import Path
from typing import Any

from ...config import TrainConfig
from ...errors import CheckpointError, ConfigError, RepaPipeError, first_line
from ...stores import open_store
from ..artifacts.checkpoints import list_checkpoints
from ..runtime.ray_session import ray_session
from ..train import TrainResult
from .setup import resolve


def run_on_ray(config: TrainConfig) -> TrainResult:
    """Train on Ray workers; paths mean what they mean here, so on a cluster they must be on shared disks.

    Raises what training raises on a rank; CheckpointError when workers died, and the same command goes on;
    ConfigError where Ray Train is not installed.
    """
    try:
        from ray.train import RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer
    except ImportError as error:
        raise ConfigError("--ray needs Ray Train, which is not installed: pip install 'ray[train]'") from error

    start = time.monotonic()
    with open_store(config.store, config.store_cache) as store:
        run_dir = Path(config.output_dir) / str(resolve(config, store).exp_name)
    notes = Path(config.output_dir).resolve() / f".ray-{uuid.uuid4().hex[:8]}"  # Ray Train's own, of no further use
    with ray_session(config.ray_address):
        gpus = _gpus() if config.device != "cpu" else 0
        trainer: Any = TorchTrainer(
            _train_a_rank,
            train_loop_config={"config": dataclasses.replace(config, ray=False), "folder": str(Path.cwd())},
            scaling_config=ScalingConfig(num_workers=config.ray_workers or gpus or 1, use_gpu=gpus > 0),
            run_config=RunConfig(storage_path=str(notes), name="run"),
        )
        try:
            trainer.fit()
        except Exception as error:
            raise _cause(error) from error
        finally:
            shutil.rmtree(notes, ignore_errors=True)
    last = list_checkpoints(run_dir)[-1]  # Ray carries no results: they are on the disk that all share
    return TrainResult(str(run_dir), int(last.stem), str(last), round(time.monotonic() - start, 1))


def _gpus() -> int:
    import ray

    return int(ray.cluster_resources().get("GPU", 0))


def _train_a_rank(job: dict[str, Any]) -> None:
    from .. import train

    os.chdir(job["folder"])
    train.run(job["config"])


def _cause(error: BaseException) -> BaseException:
    """What went wrong on a rank, as it would be raised without Ray."""
    failures = getattr(error, "worker_failures", None) or {}
    for failure in failures.values():
        cause = getattr(failure, "_base_exc", failure)
        if isinstance(cause, RepaPipeError):
            return cause
    return CheckpointError(
        f"training on Ray failed ({first_line(error)}): the same command goes on from the last checkpoint"
    )
