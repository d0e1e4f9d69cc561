"""Encodes shards on Ray actors. Arrays never pass through Ray: an actor writes its shards to the store itself.

The process that distributes the shards does not import torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...config import EncodeConfig
from ...stores import Store
from ...stores.creation import prepare_groups
from ...stores.layout import GroupSpec
from ..runtime.actor_pool import ActorPool, ActorShape
from ..runtime.gpu import has_gpu
from ..runtime.imports import quick_imports
from ..runtime.memory import ONE_ARENA_ENVIRONMENT
from ..runtime.ray_session import actor_options, cluster_shape, enter_folder, ray_session, runs_here
from ..runtime.task_queue import Failure, TaskQueue
from .monitor import EncodeMonitor
from .space import warn_of_little_space
from .work import TRIES, ShardResult, ShardTask, groups_of, is_fatal

IN_FLIGHT = 2  # shards per actor: one is decoded or written while the other is in the models


class ShardActor:
    """A ShardEncoder in its own process."""

    def __init__(self, config: EncodeConfig, groups: tuple[str, ...], folder: str) -> None:
        self._config, self._groups, self._folder = config, groups, folder

    def ready(self) -> list[GroupSpec]:
        """Load the models here, where errors keep their type, and return the templates of their groups."""
        enter_folder(self._folder)
        with quick_imports():
            from ..runtime.device import choose_device
            from .shard import ShardEncoder, use_recorded_threads

        device = choose_device(self._config.device)
        if device.type == "cpu":
            use_recorded_threads(self._config, self._groups)
        self._encoder = ShardEncoder(self._config, self._groups, device)
        return self._encoder.specs()

    def run(self, task: ShardTask) -> ShardResult:
        """Encode and commit one shard."""
        return self._encoder.run(task)


def run_on_ray(
    config: EncodeConfig, store: Store, work: list[ShardTask], monitor: EncodeMonitor
) -> list[Failure[ShardTask]]:
    """Encode the shards of `work` on Ray; return those that failed every time.

    Raises the fatal errors of shards (`work.is_fatal`), and ActorError when actors keep dying during startup.
    """
    on_cpus_here = runs_here(config.ray_address) and (config.device == "cpu" or not has_gpu())
    inherited, of_actors = (ONE_ARENA_ENVIRONMENT, {}) if on_cpus_here else ({}, ONE_ARENA_ENVIRONMENT)
    with _environment(inherited), ray_session(config.ray_address, config.device):
        return run_on_actors(config, store, work, monitor, of_actors)


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Set variables that Ray's processes inherit: an actor with an environment of its own needs a new process."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def run_on_actors(
    config: EncodeConfig,
    store: Store,
    work: list[ShardTask],
    monitor: EncodeMonitor,
    environment: dict[str, str] = ONE_ARENA_ENVIRONMENT,
) -> list[Failure[ShardTask]]:
    """Encode the shards of `work` in the current Ray session, with an environment for actors on CPUs."""
    import ray

    groups = groups_of(work)

    def create(shape: ActorShape) -> Any:
        options = actor_options(shape) | {"max_concurrency": IN_FLIGHT}
        if environment and not shape.gpus:
            options["runtime_env"] = {"env_vars": environment}
        return ray.remote(ShardActor).options(**options).remote(config.absolute(), groups, str(Path.cwd()))

    def on_result(task: ShardTask, result: ShardResult) -> None:
        monitor.on_images(result.num_images)
        monitor.on_shard(result)

    is_ready: list[bool] = []

    def on_ready(specs: list[GroupSpec]) -> None:
        prepare_groups(store, specs)
        if not is_ready:
            warn_of_little_space(store, groups)
        is_ready.append(True)

    queue = TaskQueue(work, TRIES, is_fatal)
    ActorPool(
        queue,
        create=create,
        shape=lambda: cluster_shape(config.actors, config.device),
        on_ready=on_ready,
        on_result=on_result,
        on_idle=lambda: monitor.on_images(0),
        in_flight=IN_FLIGHT,
        time_limit=config.shard_timeout,
    ).run()
    return queue.failures
