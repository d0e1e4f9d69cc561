"""Training on Ray: a thin launcher that runs the same function on every rank, through Ray Train's TorchTrainer."""

from __future__ import annotations

import dataclasses
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...config import TrainConfig
from ...errors import CheckpointError, ConfigError, RepaPipeError, first_line
from ..runtime.ray_session import enter_folder, ray_session, runs_here


def launch(config: TrainConfig, train_rank: Callable[[TrainConfig], object]) -> None:
    """Call `train_rank` on every rank on Ray.

    Args:
        config: the settings. Ranks get them without those of Ray, and with absolute paths, which on a cluster must be
            on a shared disk.
        train_rank: the training function.

    Raises:
        RepaPipeError: training raised it on a rank.
        CheckpointError: workers died.
        ConfigError: Ray Train is not installed, or this machine cannot hold as many ranks.
    """
    try:
        from ray.train import RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer
    except ImportError as error:
        raise ConfigError("--ray requires Ray Train, which is not installed: pip install 'ray[train]'") from error

    scratch = Path(config.output_dir).resolve() / f".ray-{uuid.uuid4().hex[:8]}"  # Ray Train's files, not needed later
    with ray_session(config.ray_address):
        gpus = _count("GPU") if config.device != "cpu" else 0
        workers = config.ray_workers or gpus or 1
        if runs_here(config.ray_address):  # a cluster may grow
            most = gpus or _count("CPU")
            kind = "GPUs" if gpus else "CPUs"
            config.require(workers <= most, "ray_workers", f"this machine has {most} {kind} that Ray can use")
        job = {
            "config": dataclasses.replace(config.absolute(), ray=False, ray_address=None),
            "folder": str(Path.cwd()),
            "train_rank": train_rank,
        }
        trainer: Any = TorchTrainer(
            _run_rank,
            train_loop_config=job,
            scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpus > 0),
            run_config=RunConfig(storage_path=str(scratch), name="run"),
        )
        try:
            trainer.fit()
        except Exception as error:
            raise _cause_of(error) from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _count(resource: str) -> int:
    import ray

    return int(ray.cluster_resources().get(resource, 0))


def _run_rank(job: dict[str, Any]) -> None:
    enter_folder(job["folder"])
    job["train_rank"](job["config"])


def _cause_of(error: BaseException) -> BaseException:
    """Return the error that a rank raised, without Ray's wrapping."""
    failures = getattr(error, "worker_failures", None) or {}
    for failure in failures.values():
        cause = getattr(failure, "_base_exc", failure)
        if isinstance(cause, RepaPipeError):
            return cause
    return CheckpointError(
        f"training on Ray failed ({first_line(error)}): re-run the same command to resume from the last checkpoint"
    )
