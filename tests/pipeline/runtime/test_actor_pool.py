"""ActorPool with a TaskQueue, on a fake Ray whose actors are threads. Real Ray is in ../encoding/test_faults.py."""

import re
import sys
import threading
import time
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, Future, wait
from types import SimpleNamespace

import pytest

from repa_pipe.errors import ActorError, SourceError, WeightsError
from repa_pipe.pipeline.runtime import actor_pool, placement
from repa_pipe.pipeline.runtime.actor_pool import ActorPool, ActorShape
from repa_pipe.pipeline.runtime.task_queue import TaskQueue

TRIES = 3
IN_FLIGHT = 2


class TaskError(Exception):
    """Stands for RayTaskError: an exception raised in an actor."""

    def __init__(self, cause):
        self.cause = cause


class DiedError(Exception):
    """Stands for RayActorError."""


class FakeRay:
    """Ray with actors that are threads. `fates[task]` lists the outcomes of the task's tries, the rest succeed."""

    def __init__(self, fates=None, nodes=1, start_errors=(), stoppable=False):
        self.fates = {task: list(fate) for task, fate in (fates or {}).items()}
        self.num_nodes, self.start_errors, self.stoppable = nodes, list(start_errors), stoppable
        self.exceptions = SimpleNamespace(RayTaskError=TaskError, RayError=(TaskError, DiedError))
        self.has_place = True
        self.actors = []
        self.neighbors = {}  # task → number of other tasks on its actor, one entry per try

    def create(self, shape):
        assert shape == self.shape()
        actor = FakeActor(self)
        if self.stoppable:
            actor.stop = SimpleNamespace(remote=actor.finish_early)
        self.actors.append(actor)
        return actor

    def shape(self):
        return ActorShape(self.num_nodes, 2, 0)

    def wait(self, refs, num_returns, timeout):
        assert refs  # an error in Ray
        until = FIRST_COMPLETED if num_returns == 1 else ALL_COMPLETED
        return list(wait(refs, timeout, until).done), None

    def get(self, ref):
        return ref.result()

    def kill(self, actor):
        actor.kill()

    def nodes(self):
        return [{"Alive": True}, {"Alive": False}]

    def cluster_resources(self):
        return {"CPU": 4.0, "memory": 1e9}

    def available_resources(self):
        return {"CPU": 1.0}


class FakeActor:
    def __init__(self, ray):
        self.ray, self.dead, self.stops, self.calls = ray, False, 0, []
        self.__ray_ready__ = SimpleNamespace(remote=self._placed)
        self.ready = SimpleNamespace(remote=self._ready)
        self.run = SimpleNamespace(remote=self._run)

    def _placed(self):
        future = Future()
        if self.ray.has_place:
            future.set_result(None)
        return future

    def _ready(self):
        future = Future()
        if not self.ray.has_place:
            return future
        if self.ray.start_errors:
            future.set_exception(self.ray.start_errors.pop(0))
        else:
            future.set_result("loaded")
        return future

    def _run(self, task):
        future = Future()
        self.ray.neighbors.setdefault(task, []).append(sum(not other.done() for other in self.calls))
        self.calls.append(future)
        fate = self.ray.fates.get(task)
        threading.Timer(0.02, self._end, [future, task, fate.pop(0) if fate else None]).start()
        return future

    def _end(self, future, task, fate):
        if future.done():
            return
        if self.dead or fate == "dies":
            self.kill()
        elif isinstance(fate, Exception):
            future.set_exception(TaskError(fate))
        elif fate != "hangs":
            future.set_result(f"result of {task}")

    def kill(self):
        self.dead = True
        for future in self.calls:
            if not future.done():
                future.set_exception(DiedError("the actor died"))

    def finish_early(self):
        self.stops += 1
        for future in self.calls:
            if not future.done():
                threading.Timer(0.1, future.set_result, ["stopped early"]).start()


@pytest.fixture
def run_pool(monkeypatch):
    """Run tasks 0, 1, … on a FakeRay; return the failures and the finished tasks."""

    def run(ray, tasks=8, **options):
        monkeypatch.setitem(sys.modules, "ray", ray)
        monkeypatch.setattr(actor_pool, "CHECK_CLUSTER_S", 0.01)
        queue = TaskQueue(range(tasks), TRIES, lambda error: isinstance(error, WeightsError))
        done = []

        def on_result(task, result):
            assert result == f"result of {task}"
            done.append(task)

        options = {"on_result": on_result, "in_flight": IN_FLIGHT} | options
        ActorPool(queue, create=ray.create, shape=ray.shape, **options).run()
        return [(failure.task, failure.cause) for failure in queue.failures], sorted(done)

    return run


def test_tasks_of_a_dead_actor_run_on_a_new_one(run_pool, caplog):
    ray = FakeRay({3: ["dies"], 5: ["dies", "dies"]})
    assert run_pool(ray) == ([], list(range(8)))
    assert len(ray.actors) == 4
    assert "lost a Ray actor (the actor died)" in caplog.text


def test_a_task_that_fails_three_times_is_reported_and_the_others_finish(run_pool):
    ray = FakeRay({2: [SourceError("gone\nlong story")] * 3, 4: [SourceError("once")]})
    assert run_pool(ray) == ([(2, "SourceError: gone")], [0, 1, 3, 4, 5, 6, 7])
    assert len(ray.actors) == 1


def test_a_task_that_kills_its_actor_takes_no_other_task_with_it(run_pool):
    ray = FakeRay({0: ["dies"] * 3})
    assert run_pool(ray, tasks=2) == ([(0, "DiedError: the actor died")], [1])
    assert ray.neighbors[0][-1] == 0


def test_a_hung_task_counts_as_a_try_and_its_actor_is_killed(run_pool):
    ray = FakeRay({1: ["hangs"], 6: ["hangs"] * 9})
    start = time.monotonic()
    failures, done = run_pool(ray, time_limit=0.3)
    assert time.monotonic() - start < 20
    assert failures == [(6, "TimeLimitError: not finished within 0.3 s")]
    assert done == [0, 1, 2, 3, 4, 5, 7]
    assert sum(actor.dead for actor in ray.actors) in (3, 4)  # 3 if the two hang together once


def test_the_pool_grows_with_the_cluster(run_pool):
    ray = FakeRay()

    def grow():
        ray.num_nodes = 1 if len(ray.neighbors) < 8 else 3

    run_pool(ray, tasks=60, on_idle=grow)
    assert len(ray.actors) == 3


def test_actors_are_ready_before_they_receive_tasks(run_pool):
    ray, ready = FakeRay(nodes=2), []
    run_pool(ray, on_ready=lambda answer: ready.append((answer, len(ray.neighbors))))
    assert ready[0] == ("loaded", 0)
    assert [answer for answer, _ in ready] == ["loaded"] * 2


def test_no_more_calls_are_in_flight_than_allowed(run_pool):
    ray = FakeRay()
    run_pool(ray)
    assert max(map(max, ray.neighbors.values())) == IN_FLIGHT - 1
    ray = FakeRay()
    run_pool(ray, in_flight=1)
    assert max(map(max, ray.neighbors.values())) == 0


def test_fatal_errors_end_the_run(run_pool):
    with pytest.raises(WeightsError, match="no weights"):
        run_pool(FakeRay(start_errors=[TaskError(WeightsError("no weights"))]))
    with pytest.raises(WeightsError, match="torn"):
        run_pool(FakeRay({3: [WeightsError("torn")]}))


def test_any_error_while_loading_ends_the_run(run_pool):
    with pytest.raises(SourceError, match="no images"):
        run_pool(FakeRay(start_errors=[TaskError(SourceError("no images"))]))


def test_actors_that_die_during_startup_are_replaced_a_few_times(run_pool):
    assert run_pool(FakeRay(start_errors=[DiedError("oom")] * 4))[1] == list(range(8))
    with pytest.raises(ActorError, match="5 Ray actors in a row died during startup: oom"):
        run_pool(FakeRay(start_errors=[DiedError("oom")] * 5))


def interrupt_when_busy(ray):
    """Stand for Ctrl-C while an actor runs a task."""

    def on_idle():
        if ray.neighbors:
            raise KeyboardInterrupt

    return on_idle


def test_an_interrupted_pool_stops_its_actors_and_waits_for_their_tasks(run_pool):
    ray = FakeRay({0: ["hangs"], 1: ["hangs"]}, stoppable=True)
    with pytest.raises(KeyboardInterrupt):
        run_pool(ray, tasks=2, on_idle=interrupt_when_busy(ray))
    assert [actor.stops for actor in ray.actors] == [1]
    assert [call.result() for call in ray.actors[0].calls if call.done()] == ["stopped early"] * 2


def test_actors_without_stop_are_not_waited_for(run_pool):
    ray = FakeRay({0: ["hangs"], 1: ["hangs"]})
    with pytest.raises(KeyboardInterrupt):
        run_pool(ray, tasks=2, on_idle=interrupt_when_busy(ray))
    assert not any(call.done() for call in ray.actors[0].calls)


def test_a_cluster_without_room_is_reported_and_given_up_after_the_limit(run_pool, monkeypatch, caplog):
    ray = FakeRay()
    ray.has_place = False
    monkeypatch.setattr(placement, "FIRST_LINE_S", 0.1)
    monkeypatch.setattr(placement, "LINE_EVERY_S", 0.1)
    monkeypatch.setattr(placement, "LIMIT_S", 2.5)
    found = r"Ray has no place for a worker with 2 CPUs after \d s: the cluster has 1 node with 4 CPUs, 1 of them free"
    with pytest.raises(ActorError, match=rf"^{found}; free or add resources"):
        run_pool(ray)
    assert re.match(rf"{found}; waiting for nodes or for other jobs to end, until 2 s$", caplog.messages[0])


def test_an_actor_that_loads_its_state_has_a_place(run_pool, monkeypatch, caplog):
    ray = FakeRay()
    monkeypatch.setattr(placement, "FIRST_LINE_S", 0.1)
    monkeypatch.setattr(placement, "LIMIT_S", 0.5)
    load = FakeActor._ready

    def load_slowly(actor):
        future = Future()
        threading.Timer(2.5, lambda: future.set_result(load(actor).result())).start()
        return future

    monkeypatch.setattr(FakeActor, "_ready", load_slowly)
    assert run_pool(ray) == ([], list(range(8)))
    assert caplog.messages == []
