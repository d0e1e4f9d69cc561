"""The runs of a sweep side by side on Ray core: a task each, which starts the run's own processes on its node."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from ...errors import ConfigError, first_line
from ..runtime.progress import say
from ..runtime.ray_session import ray_session
from .job import Job, Outcome, run_job
from .sweep import Resources

TRIES = 3  # of a run whose worker or node was lost; what it had saved is kept


def run_jobs_on_ray(
    jobs: Sequence[Job], resources: Resources, address: str | None, done: Callable[[Outcome], None]
) -> None:
    """Run all jobs, as many at a time as the cluster has room for. ConfigError when it has no room for one."""
    import ray

    with ray_session(address):
        share = _share_of_a_run(resources, jobs[0].train.device != "cpu")
        task: Any = ray.remote(run_job).options(max_retries=0, **share)
        pending: dict[Any, Job] = {task.remote(job): job for job in jobs}
        lost: Counter[str] = Counter()
        try:
            while pending:
                (ref,), _ = ray.wait(list(pending), num_returns=1)
                job = pending.pop(ref)
                try:
                    done(ray.get(ref))
                except ray.exceptions.RayError as error:
                    reason = first_line(error)
                    lost[job.name] += 1
                    if lost[job.name] == TRIES:
                        done(Outcome(job.name, "worker", reason))
                    else:
                        say(f"{job.name}: its worker was lost ({reason}); once more")
                        pending[task.remote(job)] = job
        except BaseException:  # we are told to stop: let every training write its checkpoint
            for ref in pending:
                ray.cancel(ref)
            ray.wait(list(pending), num_returns=len(pending), timeout=60)
            raise


def _share_of_a_run(resources: Resources, may_use_gpus: bool) -> dict[str, float]:
    """CPUs and GPUs of a run, as the sweep says, else a GPU a process where there are some, and its share of CPUs."""
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
        cpus = min(cpus, max(node.get("CPU", 0.0) for node in nodes))
    if not any(node.get("CPU", 0.0) >= cpus and node.get("GPU", 0.0) >= gpus for node in nodes):
        raise ConfigError(
            f"[resources] asks for {cpus:g} CPUs and {gpus:g} GPUs a run, and no node has as many (the cluster has "
            f"{num_cpus:g} and {num_gpus:g}): ask for less"
        )
    return {"num_cpus": cpus, "num_gpus": gpus}
