"""Ray's start and end, and what of a cluster an actor gets."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from ...config import EncodeConfig, SampleConfig
from .progress import say

LOCAL_OBJECT_STORE = 100 * 2**20  # bytes; nothing but numbers goes through it
CPUS_AN_ACTOR = 2  # where there are no GPUs to count by


@contextmanager
def ray_session(asked: str | None) -> Iterator[None]:
    """Ray on this machine, started and stopped, or the cluster that is named here or in RAY_ADDRESS."""
    import ray

    address = asked or os.environ.get("RAY_ADDRESS") or "local"
    if address == "local":
        say("starting Ray on this machine: about 5 s and 0.5 GB of memory")
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


class ActorShape(NamedTuple):
    """How many actors a cluster takes, and what each of them reserves."""

    actors: int
    cpus: int
    gpus: int


def actor_shape(nodes: Sequence[Mapping[str, float]], config: EncodeConfig | SampleConfig) -> ActorShape:
    """One actor a GPU, else one a 2 CPUs, or `--actors`; small enough for the smallest node that can have one.

    `nodes` are the resources of the nodes that are alive. `--device cuda` asks for GPUs even where none is up yet:
    a cluster that starts its nodes on demand has to be asked.
    """
    wants_gpu = config.device is not None and config.device.startswith("cuda")
    with_gpu = [node for node in nodes if node.get("GPU", 0) >= 1 and config.device != "cpu"]
    if wants_gpu or with_gpu:
        count = sum(int(node["GPU"]) for node in with_gpu)
        cpus = min((int(node.get("CPU", 0) // node["GPU"]) for node in with_gpu), default=1)
        return ActorShape(config.actors or max(1, count), max(1, cpus), 1)
    with_cpu = [int(node["CPU"]) for node in nodes if node.get("CPU", 0) >= 1] or [1]
    share = sum(with_cpu) // config.actors if config.actors else CPUS_AN_ACTOR
    cpus = max(1, min(share, *with_cpu))
    return ActorShape(config.actors or sum(node // cpus for node in with_cpu), cpus, 0)


def cluster_shape(config: EncodeConfig | SampleConfig) -> ActorShape:
    """The shape for the nodes that are alive now."""
    import ray

    return actor_shape([node["Resources"] for node in ray.nodes() if node["Alive"]], config)
