"""The same blocks on Ray core actors, which take a few at a time and write them to the folder themselves.

As in `encode_ray`, Ray restarts and retries nothing: blocks of an actor that died go back to the queue here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ...config import SampleConfig
from ...errors import CheckpointError, RepaPipeError, first_line
from ..artifacts.checkpoints import load_model
from ..runtime.device import choose_device
from ..runtime.progress import say
from ..runtime.ray_session import cluster_shape, ray_session
from .blocks import make_blocks
from .sampler import Sampler

AT_ONCE = 4  # blocks an actor takes; while it denoises one, it decodes the one before
TRIES = 4  # actors that may die in a row


class SampleActor:
    """A Sampler in a process of its own."""

    def __init__(self, config: SampleConfig, checkpoint: str, folder: str, threads: int) -> None:
        self._config, self._checkpoint, self._folder, self._threads = config, Path(checkpoint), Path(folder), threads

    def load(self) -> tuple[npt.NDArray[np.int64], int]:
        """Load the model; labels of all images, and the checkpoint's step."""
        self._device = choose_device(self._config.device)
        if self._device.type == "cpu":
            torch.set_num_threads(self._threads)  # the last bits on a CPU depend on it
        trained = load_model(self._checkpoint, self._config.ema)
        self._sampler = Sampler(self._config, trained, self._device)
        return self._sampler.all_labels(), trained.step

    def make(self, blocks: list[range]) -> int:
        """Make and write blocks; the number of their images."""
        make_blocks(self._sampler, self._folder, blocks, self._device, lambda count: None)
        return sum(map(len, blocks))


def make_blocks_on_ray(
    config: SampleConfig, checkpoint: Path, folder: Path, todo: Sequence[range], done: Callable[[int], object]
) -> tuple[npt.NDArray[np.int64], int]:
    """Make the blocks on Ray; labels of all images and the checkpoint's step.

    Raises what an actor raised, and CheckpointError when actors die again and again.
    """
    import ray

    with ray_session(config.ray_address):
        waiting = deque(list(todo[i : i + AT_ONCE]) for i in range(0, len(todo), AT_ONCE))
        pending: dict[Any, tuple[Any, list[range]]] = {}  # ref → actor, its blocks; none: it loads the model
        facts: tuple[npt.NDArray[np.int64], int] | None = None
        deaths, shape = 0, cluster_shape(config)

        def start() -> None:
            options = {"num_cpus": shape.cpus, "num_gpus": shape.gpus, "max_restarts": 0, "max_task_retries": 0}
            arguments = config, str(checkpoint.resolve()), str(folder.resolve()), torch.get_num_threads()
            actor: Any = ray.remote(SampleActor).options(**options).remote(*arguments)
            pending[actor.load.remote()] = actor, []

        for _ in range(max(1, min(shape.actors, len(waiting)))):
            start()
        while waiting or facts is None or any(blocks for _, blocks in pending.values()):
            for ref in ray.wait(list(pending), num_returns=1)[0]:
                actor, blocks = pending.pop(ref)
                try:
                    answer = ray.get(ref)
                except ray.exceptions.RayError as error:
                    cause = getattr(error, "cause", None)
                    deaths += 1
                    if isinstance(cause, RepaPipeError):
                        raise cause from None
                    if deaths >= TRIES:
                        raise CheckpointError(
                            f"{deaths} Ray actors in a row failed while they sampled: {first_line(cause or error)}"
                        ) from error
                    say(f"a Ray actor failed ({first_line(cause or error)}): another one takes its blocks")
                    waiting += [blocks] if blocks else []
                    ray.kill(actor)
                    start()
                    continue
                deaths = 0
                if blocks:
                    done(answer)
                else:
                    facts = answer
                if waiting:
                    following = waiting.popleft()
                    pending[actor.make.remote(following)] = actor, following
        return facts
