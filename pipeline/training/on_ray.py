"""Training on Ray: a thin launcher that runs the same function on every rank, through Ray Train's TorchTrainer."""

from __future__ import annotations

import dataclasses
import shutil
import uuid
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from ...config import TrainConfig
from ...errors import CheckpointError, ConfigError, RepaPipeError, first_line
from ..runtime.placement import wait_for_places
from ..runtime.ray_session import enter_folder, ray_session, runs_here
from ..runtime.signals import collected_signals
from ..runtime.stop_file import StopFile

POLL_S = 0.5


def launch(config: TrainConfig, train_rank: Callable[[TrainConfig, StopFile], object]) -> None:
    """Call `train_rank` on every rank on Ray. A stop signal of this process stops them with a checkpoint.

    Args:
        config: the settings. Ranks get them without those of Ray, and with absolute paths, which on a cluster must be
            on a shared disk.
        train_rank: the training function. Its second argument is the file that requests the stop, since ranks on Ray
            run in threads of other processes, which get no signals.

    Raises:
        RepaPipeError: training raised it on a rank.
        CheckpointError: workers died.
        ActorError: the cluster has no room for the ranks.
        ConfigError: Ray Train is not installed, or this machine cannot hold as many ranks.
    """
    try:
        from ray.train import RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer
    except ImportError as error:
        raise ConfigError("--ray requires Ray Train, which is not installed: pip install 'ray[train]'") from error

    scratch = Path(config.output_dir).resolve() / f".ray-{uuid.uuid4().hex[:8]}"  # files that are not needed later
    stop_file = StopFile(scratch / "stop")
    with ray_session(config.ray_address):
        gpus = _count("GPU") if config.device != "cpu" else 0
        workers = config.ray_workers or gpus or 1
        if runs_here(config.ray_address):  # a cluster may grow
            most = gpus or _count("CPU")
            kind = "GPUs" if gpus else "CPUs"
            config.require(workers <= most, "ray_workers", f"this machine has {most} {kind} that Ray can use")
        wait_for_places([{"GPU": 1.0} if gpus else {"CPU": 1.0}] * workers)
        job = {
            "config": dataclasses.replace(config.absolute(), ray=False, ray_address=None),
            "folder": str(Path.cwd()),
            "train_rank": train_rank,
            "stop_file": stop_file,
        }
        trainer: Any = TorchTrainer(
            _run_rank,
            train_loop_config=job,
            scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpus > 0),
            run_config=RunConfig(storage_path=str(scratch), name="run"),
        )
        try:
            with collected_signals() as signals, ThreadPoolExecutor(1) as pool:
                _wait(pool.submit(trainer.fit), signals, stop_file)  # in a thread, since it would handle SIGINT itself
        except Exception as error:
            raise _cause_of(error) from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _wait(training: Future[object], signals: list[int], stop_file: StopFile) -> None:
    """Wait for the end of the training; request it when a signal arrives."""
    requested = False
    while not wait([training], timeout=POLL_S).done:
        if signals and not requested:
            requested = True
            stop_file.create()
    training.result()


def _count(resource: str) -> int:
    import ray

    return int(ray.cluster_resources().get(resource, 0))


def _run_rank(job: dict[str, Any]) -> None:
    enter_folder(job["folder"])
    job["train_rank"](job["config"], job["stop_file"])


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
