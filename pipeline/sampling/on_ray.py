"""Sampling on Ray: actors take a few blocks at a time and write them to the folder themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ...config import SampleConfig
from ...errors import ActorError, RepaPipeError
from ..artifacts.checkpoints import load_model, unrecorded
from ..runtime.actor_pool import ActorPool, ActorShape
from ..runtime.device import choose_device
from ..runtime.ray_session import actor_options, cluster_shape, enter_folder, ray_session
from ..runtime.task_queue import TaskQueue
from .blocks import make_blocks
from .sampler import Sampler

BLOCKS_PER_TASK = 4  # while an actor denoises one block, it decodes the one before
TRIES = 4

LabelsAndStep = tuple[npt.NDArray[np.int64], int]


class SampleActor:
    """A sampler in a separate process."""

    def __init__(self, config: SampleConfig, checkpoint: str, folder: str, threads: int, current: str) -> None:
        self._config, self._checkpoint, self._folder, self._threads = config, Path(checkpoint), Path(folder), threads
        self._current = current

    def ready(self) -> LabelsAndStep:
        """Load the model; return the labels of all images, and the checkpoint's step."""
        enter_folder(self._current)
        self._device = choose_device(self._config.device)
        if self._device.type == "cpu":
            torch.set_num_threads(self._threads)  # rounding on a CPU depends on it
        trained = load_model(self._checkpoint, self._config.ema, unrecorded(self._config))
        self._sampler = Sampler(self._config, trained, self._device)
        return self._sampler.all_labels(), trained.step

    def run(self, blocks: list[range]) -> int:
        """Generate and write blocks; return the number of images."""
        make_blocks(self._sampler, self._folder, blocks, self._device)
        return sum(map(len, blocks))


def make_blocks_on_ray(  # noqa: PLR0917 - called once
    config: SampleConfig,
    checkpoint: Path,
    folder: Path,
    todo: Sequence[range],
    on_images: Callable[[int], object],
    on_idle: Callable[[], object],
) -> LabelsAndStep:
    """Generate the blocks on Ray; return the labels of all images and the checkpoint's step.

    `on_idle` is called at least once per second; what it raises ends the actors.

    Raises:
        RepaPipeError: an actor raised it.
        ActorError: a block failed in every attempt, or actors could not be started.
    """
    import ray

    places = str(checkpoint.resolve()), str(folder.resolve())
    arguments = config.absolute(), *places, torch.get_num_threads(), str(Path.cwd())
    known: list[LabelsAndStep] = []
    # if no block is missing, one actor is still needed for the labels and the step
    tasks = [list(todo[i : i + BLOCKS_PER_TASK]) for i in range(0, len(todo), BLOCKS_PER_TASK)] or [[]]
    queue = TaskQueue(tasks, TRIES, lambda error: isinstance(error, RepaPipeError))

    def create(shape: ActorShape) -> Any:
        return ray.remote(SampleActor).options(**actor_options(shape)).remote(*arguments)

    with ray_session(config.ray_address, config.device):
        ActorPool(
            queue,
            create=create,
            shape=lambda: cluster_shape(config.actors, config.device),
            on_ready=known.append,
            on_result=lambda blocks, count: on_images(count),
            on_idle=on_idle,
        ).run()
    if queue.failures:
        raise ActorError(f"images could not be generated, after {TRIES} tries: {queue.failures[0].cause}")
    return known[0]
