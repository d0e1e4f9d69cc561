"""Ray sessions, and the resources that actors reserve."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from .actor_pool import ActorShape

logger = logging.getLogger(__name__)

LOCAL_OBJECT_STORE = 100 * 2**20  # bytes; only numbers pass through it
CPUS_PER_ACTOR = 2  # where there are no GPUs to count


@contextmanager
def ray_session(address: str | None) -> Iterator[None]:
    """Connect to the cluster at `address` or $RAY_ADDRESS, else run Ray on this machine until the block ends."""
    import ray

    address = address or os.environ.get("RAY_ADDRESS") or "local"
    if address == "local":
        logger.info("starting Ray on this machine: about 5 s and 0.5 GB of memory")
        ray.init(
            address="local",
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=LOCAL_OBJECT_STORE,
        )
    else:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()


def actor_shape(nodes: Sequence[Mapping[str, float]], actors: int | None, device: str | None) -> ActorShape:
    """Return the shape of a pool whose actors fit on the smallest suitable node.

    Args:
        nodes: the resources of the nodes that are alive.
        actors: number of actors. Default: one per GPU, else one per 2 CPUs.
        device: device of the models. With `cuda`, actors reserve a GPU even if no node has one yet, since an
            autoscaling cluster starts such nodes only on request. Default: GPUs if there are any.
    """
    wants_gpu = device is not None and device.startswith("cuda")
    with_gpu = [node for node in nodes if node.get("GPU", 0) >= 1 and device != "cpu"]
    if wants_gpu or with_gpu:
        count = sum(int(node["GPU"]) for node in with_gpu)
        cpus = min((int(node.get("CPU", 0) // node["GPU"]) for node in with_gpu), default=1)
        return ActorShape(actors or max(1, count), max(1, cpus), 1)
    with_cpu = [int(node["CPU"]) for node in nodes if node.get("CPU", 0) >= 1] or [1]
    share = sum(with_cpu) // actors if actors else CPUS_PER_ACTOR
    cpus = max(1, min(share, *with_cpu))
    return ActorShape(actors or sum(node // cpus for node in with_cpu), cpus, 0)


def cluster_shape(actors: int | None, device: str | None) -> ActorShape:
    """Return `actor_shape` for the nodes that are alive now."""
    import ray

    return actor_shape([node["Resources"] for node in ray.nodes() if node["Alive"]], actors, device)


def actor_options(shape: ActorShape) -> dict[str, object]:
    """Return the Ray options of an actor. Ray neither restarts it nor retries its tasks; `ActorPool` does."""
    return {"num_cpus": shape.cpus, "num_gpus": shape.gpus, "max_restarts": 0, "max_task_retries": 0}
