"""The same shards on Ray core actors, with a queue that the driver owns.

Actors are never restarted by Ray and tasks never retried by it: whatever happens to an actor, its shards go back
to the queue here and a new actor is asked for. Arrays never travel; an actor writes its shards to the store itself.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import Any, NamedTuple

from ...config import EncodeConfig
from ...errors import StoreError
from ...stores import Store
from ..runtime.memory import ONE_ARENA_ENVIRONMENT
from ..runtime.ray_session import cluster_shape, ray_session
from .monitor import Monitor
from .shard import ShardEncoder, ShardResult
from .work import TRIES, FailedShard, Work, groups_of, is_fatal, prepare_groups

IN_FLIGHT = 2  # shards an actor: one is decoded or written while the other is in the models
START_TRIES = 5
LOOK_AT_CLUSTER_S = 5.0


class ShardActor:
    """A ShardEncoder in a process of its own."""

    def __init__(self, config: EncodeConfig, groups: tuple[str, ...]) -> None:
        self._config, self._groups = config, groups

    def ready(self) -> list[Any]:
        """Load the models; the templates of their groups, which must be the driver's."""
        self._encoder = ShardEncoder(self._config, self._groups)  # here, where an error keeps its type
        return self._encoder.specs()

    def run(self, shard: int, groups: tuple[str, ...]) -> ShardResult:
        """Encode and commit one shard."""
        return self._encoder.run(shard, groups)


def run_on_ray(config: EncodeConfig, store: Store, work: Work, monitor: Monitor) -> list[FailedShard]:
    """Run the shards on Ray: this machine (Ray is started and stopped), or the cluster that is named."""
    with ray_session(config.ray_address):
        return _Queue(config, store, work, monitor).drive()


class _Entry(NamedTuple):
    """A shard that waits or runs."""

    shard: int
    groups: tuple[str, ...]
    tried: int  # this try included


@dataclass(frozen=True, slots=True)
class _Flight:
    """A call that an actor is at; without an entry it is its start."""

    actor: Any
    entry: _Entry | None
    since: float


class _Queue:
    def __init__(self, config: EncodeConfig, store: Store, work: Work, monitor: Monitor) -> None:
        import ray

        self._ray, self._store, self._monitor = ray, store, monitor
        self._config = config
        self._groups = groups_of(work)
        self._waiting = deque(_Entry(shard, groups, 1) for shard, groups in work)
        self._last_tries: deque[_Entry] = deque()  # an actor does nothing beside them: no other shard is to blame
        self._pending: dict[Any, _Flight] = {}  # by Ray's reference
        self._load: dict[Any, int] = {}  # ready actor → shards in flight
        self._failed: list[FailedShard] = []
        self._failed_starts = 0
        self._looked = 0.0

    def drive(self) -> list[FailedShard]:
        while self._waiting or self._last_tries or any(flight.entry for flight in self._pending.values()):
            self._feed()
            self._ask_for_actors()
            done, _ = self._ray.wait(list(self._pending), num_returns=1, timeout=1.0)
            for ref in done:
                self._handle(ref)
            self._end_late()
            self._monitor.images(0)
        return self._failed

    def _feed(self) -> None:
        for actor in self._load:
            while self._waiting and self._load[actor] < IN_FLIGHT:
                self._submit(actor, self._waiting.popleft(), 1)
            if self._last_tries and not self._load[actor]:
                self._submit(actor, self._last_tries.popleft(), IN_FLIGHT)

    def _submit(self, actor: Any, entry: _Entry, places: int) -> None:
        self._pending[actor.run.remote(entry.shard, entry.groups)] = _Flight(actor, entry, time.monotonic())
        self._load[actor] += places

    def _ask_for_actors(self) -> None:
        """Ask for the actors that are missing: at the start, after a death, and when the cluster has grown."""
        starting = sum(flight.entry is None for flight in self._pending.values())
        waiting = len(self._waiting) + len(self._last_tries)
        if not waiting or (self._pending and time.monotonic() - self._looked < LOOK_AT_CLUSTER_S):
            return
        self._looked = time.monotonic()
        shape = cluster_shape(self._config)
        for _ in range(min(shape.actors - len(self._load) - starting, waiting)):
            actor: Any = (
                self._ray.remote(ShardActor)
                .options(
                    max_concurrency=IN_FLIGHT,
                    max_restarts=0,
                    max_task_retries=0,
                    num_cpus=shape.cpus,
                    num_gpus=shape.gpus,
                    runtime_env=None if shape.gpus else {"env_vars": ONE_ARENA_ENVIRONMENT},
                )
                .remote(self._config, self._groups)
            )
            self._pending[actor.ready.remote()] = _Flight(actor, None, time.monotonic())

    def _handle(self, ref: Any) -> None:
        flight = self._pending.pop(ref)
        try:
            result = self._ray.get(ref)
        except self._ray.exceptions.RayTaskError as error:
            cause = error.cause if isinstance(error.cause, Exception) else error
            if flight.entry is None or is_fatal(cause):
                raise cause from None
            self._free(flight)
            self._again(flight.entry, cause)
        except self._ray.exceptions.RayError as error:
            self._bury(flight, error)
        else:
            self._succeed(flight, result)

    def _succeed(self, flight: _Flight, result: Any) -> None:
        if flight.entry is None:
            prepare_groups(self._store, result)
            self._load[flight.actor] = 0
            self._failed_starts = 0
        else:
            self._free(flight)
            self._monitor.images(result.num_images)
            self._monitor.shard(result)

    def _free(self, flight: _Flight) -> None:
        if flight.actor in self._load:  # it may have died after this result
            alone = flight.entry is not None and flight.entry.tried == TRIES
            self._load[flight.actor] -= IN_FLIGHT if alone else 1

    def _bury(self, flight: _Flight, error: Exception) -> None:
        """An actor, its process or its node is gone: never trust it again."""
        if flight.entry is None:
            self._failed_starts += 1
            if self._failed_starts >= START_TRIES:
                raise StoreError(f"{START_TRIES} Ray actors in a row died while they started: {error}") from error
        else:
            self._again(flight.entry, error)
        self._load.pop(flight.actor, None)
        self._looked = 0.0
        self._ray.kill(flight.actor)

    def _end_late(self) -> None:
        """End the actors of shards that have hung; what else they were at starts again without blame."""
        limit = self._config.shard_timeout
        if limit is None:
            return
        late = [
            ref for ref, flight in self._pending.items() if flight.entry and time.monotonic() - flight.since > limit
        ]
        for ref in late:
            if ref not in self._pending:
                continue
            flight = self._pending.pop(ref)
            for other in [other for other, beside in self._pending.items() if beside.actor is flight.actor]:
                entry = self._pending.pop(other).entry
                if entry is not None:
                    self._waiting.appendleft(entry)
            self._bury(flight, TimeoutError(f"not finished within --shard-timeout {limit:g} s"))

    def _again(self, entry: _Entry, cause: Exception) -> None:
        entry = entry._replace(tried=entry.tried + 1)
        if entry.tried > TRIES:
            self._failed.append(FailedShard.from_exception(entry.shard, cause))
        else:
            (self._last_tries if entry.tried == TRIES else self._waiting).append(entry)
