"""Ray sessions, and the resources that actors reserve."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ...errors import ConfigError, first_line
from .actor_pool import ActorShape
from .machine import num_usable_cpus
from .ray_address import given_address, require_cluster
from .signals import kept_handlers

logger = logging.getLogger(__name__)

DEFAULT_TEMPORARY = "/tmp"  # where Ray puts its files without $RAY_TMPDIR and $TMPDIR
LONGEST_TEMPORARY = 36  # bytes; Ray appends up to 70, and a socket's path has at most 107
CHECK_CLUSTER = "check that the cluster has the same version of Ray and, if it has a token, that RAY_AUTH_MODE is token"
LOCAL_OBJECT_STORE = 100 * 2**20  # bytes; only numbers pass through it
CPUS_PER_ACTOR = 2  # where there are no GPUs to count


@contextmanager
def ray_session(address: str | None, device: str | None = None) -> Iterator[None]:
    """Connect to the cluster at `address` or $RAY_ADDRESS, else run Ray on this machine until the block ends.

    Args:
        address: address of the cluster, or `local`.
        device: device of the actors.

    Raises:
        ConfigError: no cluster answers at the address or it refuses the connection, or this machine lacks the device.
    """
    import ray

    address, origin = given_address(address)
    with ExitStack() as stack:
        options: dict[str, Any] = {}
        if address == "local":
            logger.info("starting Ray on this machine: about 5 s and 0.5 GB of memory")
            options = {
                "num_cpus": num_usable_cpus(),
                "include_dashboard": False,
                "object_store_memory": LOCAL_OBJECT_STORE,
                "_temp_dir": stack.enter_context(_temporary_folder()),
            }
        else:
            require_cluster(address, origin)
        try:
            with kept_handlers(), _on_loopback() if address == "local" else nullcontext():
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)
        except Exception as error:  # such as another version of Ray
            doing, remedy = ("start on this machine", "") if address == "local" else ("connect", f": {CHECK_CLUSTER}")
            raise ConfigError(f"{origin} is {address!r}: Ray cannot {doing} ({first_line(error)}){remedy}") from error
        stack.callback(ray.shutdown)
        if address == "local" and (device or "").startswith("cuda") and not ray.cluster_resources().get("GPU"):
            raise ConfigError(f"--device is {device!r}: this machine has no GPU that Ray can use")
        yield


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Let Ray listen on 127.0.0.1 alone, as it does by itself on Windows and macOS.

    `_node_ip_address="127.0.0.1"` does not: Ray replaces it with the address that other machines reach.
    """
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def runs_here(address: str | None) -> bool:
    """Return whether `ray_session` of this address uses this machine alone, which does not grow."""
    return given_address(address)[0] == "local"


@contextmanager
def _temporary_folder() -> Iterator[str | None]:
    """Yield a short folder for the sockets of Ray if its usual one has too long a path, else None."""
    usual = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or DEFAULT_TEMPORARY
    if len(os.fsencode(Path(usual).absolute())) <= LONGEST_TEMPORARY:
        yield None
        return
    with TemporaryDirectory(prefix="ray-", dir=DEFAULT_TEMPORARY, ignore_cleanup_errors=True) as short:
        logger.info("%s is too long for the sockets of Ray, which are in %s", usual, short)
        yield short


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


def enter_folder(folder: str) -> None:
    """Make the driver's current folder that of this process, for folders of models whose relative path is recorded.

    A node may lack the folder: then all other paths, which are absolute, still work.
    """
    if Path(folder).is_dir():
        os.chdir(folder)


def actor_options(shape: ActorShape) -> dict[str, object]:
    """Return the Ray options of an actor. Ray neither restarts it nor retries its tasks; `ActorPool` does."""
    return {"num_cpus": shape.cpus, "num_gpus": shape.gpus, "max_restarts": 0, "max_task_retries": 0}
