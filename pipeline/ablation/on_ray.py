"""The runs of a sweep in parallel on Ray; an actor starts the commands of a run on its node."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Sequence
from typing import Any

from ...errors import ConfigError
from ..runtime.actor_pool import ActorPool, ActorShape
from ..runtime.ray_session import actor_options, ray_session
from ..runtime.task_queue import TaskQueue
from .fork_server import fork_server
from .job import Job, Outcome, run_job
from .sweep import Resources

TRIES = 3  # per run, if its worker or node is lost; it resumes from its last checkpoint


class JobActor:
    """Runs jobs in the current folder of the driver."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._stop = threading.Event()

    def ready(self) -> None:
        """Change to the driver's folder: paths in the configs are relative to it.

        Raises:
            ConfigError: this node does not have the folder.
        """
        try:
            os.chdir(self._folder)
        except OSError as error:
            raise ConfigError(
                f"{socket.gethostname()} lacks the folder {self._folder} ({error.strerror}): run the command in a "
                "folder that all nodes share"
            ) from error
        self._server = fork_server()

    def run(self, job: Job) -> Outcome:
        """Run one job."""
        return run_job(job, server=self._server, stop=self._stop)

    def stop(self) -> None:
        """Terminate the command of the current job; `train` writes a checkpoint first."""
        self._stop.set()


def run_jobs_on_ray(
    jobs: Sequence[Job], resources: Resources, address: str | None, on_outcome: Callable[[Outcome], None]
) -> None:
    """Run all jobs, as many at a time as fit on the cluster; raise ConfigError if not even one fits."""
    import ray

    with ray_session(address):
        shape = _shape_per_run(resources, jobs[0].train.device != "cpu")._replace(actors=len(jobs))

        def create(shape: ActorShape) -> Any:
            options = actor_options(shape) | {"max_concurrency": 2}  # `stop` is called during `run`
            return ray.remote(JobActor).options(**options).remote(os.getcwd())  # noqa: PTH109

        queue = TaskQueue(jobs, TRIES, lambda error: False)
        ActorPool(queue, create=create, shape=lambda: shape, on_result=lambda _, outcome: on_outcome(outcome)).run()
        for failure in queue.failures:
            on_outcome(Outcome(failure.task.name, "worker", failure.cause))


def _shape_per_run(resources: Resources, may_use_gpus: bool) -> ActorShape:
    """Return the CPUs and GPUs per run: as in the sweep, else one GPU per process and a proportion of the CPUs."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    total = ray.cluster_resources()
    num_gpus, num_cpus = total.get("GPU", 0.0), total.get("CPU", 1.0)
    gpus = resources.gpus
    if gpus is None:
        gpus = float(resources.processes) if num_gpus and may_use_gpus else 0.0
    cpus = resources.cpus
    if cpus is None:
        cpus = max(1.0, num_cpus * gpus // num_gpus) if gpus and num_gpus else float(2 * resources.processes)
        cpus = max(1.0, min(cpus, max(node.get("CPU", 0.0) for node in nodes)))
    if not any(node.get("CPU", 0.0) >= cpus and node.get("GPU", 0.0) >= gpus for node in nodes):
        raise ConfigError(
            f"[resources] requests {cpus:g} CPUs and {gpus:g} GPUs per run, but no node has that many (the cluster has "
            f"{num_cpus:g} CPUs and {num_gpus:g} GPUs): request less"
        )
    return ActorShape(1, cpus, gpus)
