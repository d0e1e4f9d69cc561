"""A pool of Ray core actors that run the tasks of one queue, which the driver owns.

Ray neither restarts actors nor retries tasks here. When an actor dies, its tasks return to the queue and the driver
requests a new actor. (`ray.util.ActorPool` hangs on a dead actor.) An actor class has two methods: `ready()` loads the
actor's state, and `run(task)` runs a task. An optional third one, `stop()`, is called when the driver is interrupted.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

from ...errors import ActorError, first_line
from .placement import PlacementWatch
from .task_queue import Entry, TaskQueue

logger = logging.getLogger(__name__)
T = TypeVar("T")

START_TRIES = 5  # consecutive deaths during startup
CHECK_CLUSTER_S = 5.0
STOP_S = 60.0  # for actors to finish after `stop()`


class TimeLimitError(TimeoutError):
    """A task that did not finish within the pool's time limit."""


class ActorShape(NamedTuple):
    """The number of actors, and the resources that each of them reserves."""

    actors: int
    cpus: float
    gpus: float


@dataclass(frozen=True, slots=True)
class _PendingCall(Generic[T]):
    """A call to an actor that has not returned: `run`, or `ready` if `entry` is None."""

    actor: Any
    entry: Entry[T] | None
    since: float
    placed: Any = None  # reference that is ready when the actor of a call of `ready` has its resources


class ActorPool(Generic[T]):
    """A pool of Ray actors that runs the tasks of a queue.

    Args:
        queue: the tasks and their retry policy.
        create: creates one actor, given the shape of the pool.
        shape: returns the shape for the current cluster. Called repeatedly while tasks wait, so that the pool grows
            with the cluster.
        on_result: called with a task and the value that `run` returned.
        on_ready: called with the value that `ready()` of an actor returned, before the actor receives a task.
        on_idle: called at least once per second.
        in_flight: number of concurrent calls per actor; the actors need at least this `max_concurrency`.
        time_limit: seconds after which a call is considered hung and its actor is killed. None: no limit.
    """

    def __init__(
        self,
        queue: TaskQueue[T],
        *,
        create: Callable[[ActorShape], Any],
        shape: Callable[[], ActorShape],
        on_result: Callable[[T, Any], object],
        on_ready: Callable[[Any], object] = lambda answer: None,
        on_idle: Callable[[], object] = lambda: None,
        in_flight: int = 1,
        time_limit: float | None = None,
    ) -> None:
        import ray

        self._ray: Any = ray
        self._queue, self._create, self._shape = queue, create, shape
        self._on_ready, self._on_result, self._on_idle = on_ready, on_result, on_idle
        self._in_flight, self._time_limit = in_flight, time_limit
        self._pending: dict[Any, _PendingCall[T]] = {}  # by Ray's object reference
        self._load: dict[Any, int] = {}  # ready actor → calls in flight
        self._failed_starts = 0
        self._checked = 0.0
        self._watch: PlacementWatch | None = None

    def run(self) -> None:
        """Run all tasks. Tasks that failed in every try are in `queue.failures` afterwards.

        Raises errors of `ready()`, fatal errors of tasks, and ActorError when actors keep dying during startup, or none
        has found a place on the cluster for `placement.LIMIT_S` seconds.
        """
        try:
            while self._queue or any(call.entry for call in self._pending.values()):
                self._dispatch()
                self._request_actors()
                done, _ = self._ray.wait(list(self._pending), num_returns=1, timeout=1.0)
                for reference in done:
                    self._handle(reference)
                self._kill_timed_out()
                self._watch_placement()
                self._on_idle()
        except BaseException:
            self._stop_actors()
            raise

    def _dispatch(self) -> None:
        for actor in self._load:
            while self._load[actor] < self._in_flight and (entry := self._queue.take(not self._load[actor])):
                self._pending[actor.run.remote(entry.task)] = _PendingCall(actor, entry, time.monotonic())
                self._load[actor] += self._places(entry)

    def _places(self, entry: Entry[T]) -> int:
        """Return the number of calls that an entry counts for: a last try occupies its actor entirely."""
        return self._in_flight if self._queue.is_last_try(entry) else 1

    def _request_actors(self) -> None:
        """Request missing actors: at the start, after the loss of an actor, and when the cluster has grown."""
        if not self._queue or (self._pending and time.monotonic() - self._checked < CHECK_CLUSTER_S):
            return
        self._checked = time.monotonic()
        starting = sum(call.entry is None for call in self._pending.values())
        shape = self._shape()
        for _ in range(min(shape.actors - len(self._load) - starting, len(self._queue))):
            actor = self._create(shape)
            placed = actor.__ray_ready__.remote()
            self._pending[actor.ready.remote()] = _PendingCall(actor, None, time.monotonic(), placed)
        self._watch = self._watch or PlacementWatch({"CPU": shape.cpus, "GPU": shape.gpus})

    def _watch_placement(self) -> None:
        """Notice that no actor has a place on the cluster: neither a ready one nor one that loads its state."""
        placing = [call.placed for call in self._pending.values() if call.placed is not None]
        if self._watch is None or not placing or self._load or self._ray.wait(placing, num_returns=1, timeout=0)[0]:
            self._watch = None
        else:
            self._watch.check()

    def _handle(self, reference: Any) -> None:
        call = self._pending.pop(reference)
        try:
            answer = self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            cause = error.cause if isinstance(error.cause, Exception) else error
            if call.entry is None:
                raise cause from None
            self._release(call)
            self._queue.fail(call.entry, cause)
        except self._ray.exceptions.RayError as error:
            self._on_actor_death(call, error)
        else:
            self._on_success(call, answer)

    def _on_success(self, call: _PendingCall[T], answer: Any) -> None:
        if call.entry is None:
            self._on_ready(answer)
            self._load[call.actor] = 0
            self._failed_starts = 0
        else:
            self._release(call)
            self._on_result(call.entry.task, answer)

    def _release(self, call: _PendingCall[T]) -> None:
        if call.actor in self._load and call.entry is not None:  # the actor may have died after this result
            self._load[call.actor] -= self._places(call.entry)

    def _on_actor_death(self, call: _PendingCall[T], error: Exception) -> None:
        """Remove an actor that died or was killed, and queue its task again."""
        logger.warning("lost a Ray actor (%s); requesting a new one if tasks remain", first_line(error))
        self._load.pop(call.actor, None)
        self._checked = 0.0
        self._ray.kill(call.actor)
        if call.entry is not None:
            self._queue.fail(call.entry, error)
            return
        self._failed_starts += 1
        if self._failed_starts >= START_TRIES:
            raise ActorError(f"{START_TRIES} Ray actors in a row died during startup: {error}") from error

    def _kill_timed_out(self) -> None:
        """Kill the actors of hung tasks. Their other tasks are queued again, without counting a try."""
        if self._time_limit is None:
            return
        now = time.monotonic()
        late = [ref for ref, call in self._pending.items() if call.entry and now - call.since > self._time_limit]
        for reference in late:
            if reference not in self._pending:
                continue
            call = self._pending.pop(reference)
            for other in [ref for ref, running in self._pending.items() if running.actor is call.actor]:
                entry = self._pending.pop(other).entry
                if entry is not None:
                    self._queue.put_back(entry)
            self._on_actor_death(call, TimeLimitError(f"not finished within {self._time_limit:g} s"))

    def _stop_actors(self) -> None:
        """Call `stop()` of running actors that have it, and wait up to `STOP_S` seconds for their tasks."""
        running = {ref: call.actor for ref, call in self._pending.items() if call.entry and hasattr(call.actor, "stop")}
        for actor in set(running.values()):
            actor.stop.remote()
        if running:
            self._ray.wait(list(running), num_returns=len(running), timeout=STOP_S)
