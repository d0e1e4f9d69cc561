"""Encodes shards in this process: one is decoded or written while another one is in the models."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from ...config import EncodeConfig
from ...stores import Store
from ...stores.creation import prepare_groups
from ..runtime.device import choose_device
from ..runtime.task_queue import Entry, Failure, TaskQueue
from .monitor import EncodeMonitor
from .shard import ShardEncoder, StoppedError, use_recorded_threads
from .space import warn_of_little_space
from .work import TRIES, ShardResult, ShardTask, groups_of, is_fatal

logger = logging.getLogger(__name__)

IN_FLIGHT = 2
POLL_S = 0.5

Submit = Callable[[ShardTask], "Future[ShardResult]"]


def run_inline(
    config: EncodeConfig, store: Store, work: list[ShardTask], monitor: EncodeMonitor
) -> list[Failure[ShardTask]]:
    """Encode the shards of `work` on one device; return those that failed every time."""
    groups = groups_of(work)
    device = choose_device(config.device)
    if device.type == "cpu":
        use_recorded_threads(config, groups)
    with ShardEncoder(config, groups, device) as encoder:
        prepare_groups(store, encoder.specs())
        warn_of_little_space(store, groups)
        pool = ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="shard")
        try:
            failures = drive(
                work, lambda task: pool.submit(encoder.run, task, monitor.on_images), monitor, config.shard_timeout
            )
        except BaseException as error:
            encoder.stop.set()
            # on Ctrl-C, do not wait for a batch in the models: an uncommitted shard is encoded again
            pool.shutdown(wait=not isinstance(error, KeyboardInterrupt))
            raise
        pool.shutdown()
        return failures


def drive(
    work: list[ShardTask], submit: Submit, monitor: EncodeMonitor, shard_timeout: float | None = None
) -> list[Failure[ShardTask]]:
    """Keep two shards in flight and retry failed ones; return those that failed every time.

    Threads cannot be killed: a shard that takes longer than `shard_timeout` seconds is only reported.
    """
    queue = TaskQueue(work, TRIES, lambda error: is_fatal(error) or isinstance(error, StoppedError))
    running: dict[Future[ShardResult], Entry[ShardTask]] = {}
    deadlines: dict[int, float] = {}
    while queue or running:
        while len(running) < IN_FLIGHT and (entry := queue.take(worker_is_idle=True)):
            running[submit(entry.task)] = entry
            deadlines[entry.task.shard] = time.monotonic() + (shard_timeout or math.inf)
        for future in wait(running, timeout=POLL_S, return_when=FIRST_COMPLETED).done:
            entry = running.pop(future)
            del deadlines[entry.task.shard]
            error = future.exception()
            if error is None:
                monitor.on_shard(future.result())
            else:
                queue.fail(entry, error)
        for shard in [shard for shard, deadline in deadlines.items() if time.monotonic() > deadline]:
            deadlines[shard] = math.inf
            logger.warning(
                "shard %d has not finished within --shard-timeout %g s; this process cannot kill it: stop and re-run "
                "the command, or use --ray, where its actor is killed and the shard is retried",
                shard,
                shard_timeout,
            )
        monitor.on_images(0)
    return queue.failures
