"""The driver's queue, on a Ray that is made of threads; real Ray is in test_encode_faults.py."""

import threading
import time
from concurrent.futures import FIRST_COMPLETED, Future, wait
from types import SimpleNamespace

import pytest

from repa_pipe.config import EncodeConfig
from repa_pipe.errors import SourceError, WeightsError
from repa_pipe.pipeline.encoding import on_ray as encode_ray
from repa_pipe.pipeline.encoding.shard import ShardResult
from repa_pipe.pipeline.runtime.ray_session import ActorShape, actor_shape


class TaskError(Exception):
    def __init__(self, cause):
        self.cause = cause


class DiedError(Exception):
    pass


class FakeRay:
    """Actors are threads; what `fates` says of a shard happens to its tries in turn."""

    def __init__(self, fates=None, nodes=1, start_errors=()):
        self.fates = {shard: list(fate) for shard, fate in (fates or {}).items()}
        self.num_nodes, self.start_errors = nodes, list(start_errors)
        self.exceptions = SimpleNamespace(RayTaskError=TaskError, RayError=(TaskError, DiedError))
        self.actors, self.beside = [], {}

    def remote(self, _):
        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=self._actor))

    def _actor(self, *_):
        actor = FakeActor(self)
        self.actors.append(actor)
        return actor

    def nodes(self):
        return [{"Alive": True, "Resources": {"CPU": 2.0}}] * self.num_nodes

    def wait(self, refs, num_returns, timeout):
        assert refs
        return list(wait(refs, timeout, FIRST_COMPLETED).done), None

    def get(self, ref):
        return ref.result()

    def kill(self, actor):
        actor.kill()


class FakeActor:
    def __init__(self, ray):
        self.ray, self.dead, self.flying = ray, False, []
        self.ready = SimpleNamespace(remote=self._ready)
        self.run = SimpleNamespace(remote=self._run)

    def _ready(self):
        future = Future()
        if self.ray.start_errors:
            future.set_exception(self.ray.start_errors.pop(0))
        else:
            future.set_result([])
        return future

    def _run(self, shard, _):
        future = Future()
        self.ray.beside.setdefault(shard, []).append(len([other for other in self.flying if not other.done()]))
        self.flying.append(future)
        fate = self.ray.fates.get(shard, [])
        threading.Timer(0.02, self._end, [future, shard, fate.pop(0) if fate else None]).start()
        return future

    def _end(self, future, shard, fate):
        if future.done():
            return
        if self.dead or fate == "dies":
            self.kill()
        elif isinstance(fate, Exception):
            future.set_exception(TaskError(fate))
        elif fate != "hangs":
            future.set_result(ShardResult(shard, 4, 0, f"actor-{id(self)}", 0.02, 0.01))

    def kill(self):
        self.dead = True
        for future in self.flying:
            if not future.done():
                future.set_exception(DiedError("the actor died"))


@pytest.fixture
def drive(monkeypatch):
    def run(ray, shards=8, **changes):
        done = []
        monitor = SimpleNamespace(images=lambda _: None, shard=lambda result: done.append(result.shard))
        monkeypatch.setitem(__import__("sys").modules, "ray", ray)
        monkeypatch.setattr(encode_ray, "prepare_groups", lambda *_: None)
        monkeypatch.setattr(encode_ray, "LOOK_AT_CLUSTER_S", 0.01)
        config = EncodeConfig(source="s", store="t", **{"device": "cpu"} | changes)
        queue = encode_ray._Queue(config, None, [(shard, ("latents/a",)) for shard in range(shards)], monitor)
        return queue.drive(), sorted(done)

    return run


def test_shards_of_a_dead_actor_are_tried_in_another(drive):
    ray = FakeRay({3: ["dies"], 5: ["dies", "dies"]})
    assert drive(ray) == ([], list(range(8)))
    assert len(ray.actors) == 4


def test_a_shard_that_fails_three_times_is_reported_and_the_others_finish(drive):
    failed, done = drive(FakeRay({2: [SourceError("gone\nlong story")] * 3, 4: [SourceError("once")]}))
    assert [(entry.shard, entry.cause) for entry in failed] == [(2, "SourceError: gone")]
    assert done == [0, 1, 3, 4, 5, 6, 7]


def test_a_shard_that_kills_takes_no_other_with_it(drive):
    ray = FakeRay({0: ["dies"] * 3})
    failed, done = drive(ray, shards=2)
    assert [entry.shard for entry in failed] == [0]
    assert done == [1]
    assert ray.beside[0][-1] == 0


def test_a_hung_shard_counts_as_a_try_and_its_actor_is_ended(drive):
    ray = FakeRay({1: ["hangs"], 6: ["hangs"] * 9})
    start = time.monotonic()
    failed, done = drive(ray, shard_timeout=0.3)
    assert time.monotonic() - start < 20
    assert [(entry.shard, entry.cause) for entry in failed] == [
        (6, "TimeoutError: not finished within --shard-timeout 0.3 s")
    ]
    assert done == [0, 1, 2, 3, 4, 5, 7]
    assert sum(actor.dead for actor in ray.actors) in (3, 4)  # the two may hang together once


def test_actors_are_asked_for_as_the_cluster_grows(drive):
    ray = FakeRay()
    grow = ray.nodes
    ray.nodes = lambda: grow() * (1 if len(ray.beside) < 8 else 3)
    drive(ray, shards=60)
    assert len(ray.actors) == 3


def test_what_would_fail_everywhere_ends_the_run(drive):
    with pytest.raises(WeightsError, match="no weights"):
        drive(FakeRay(start_errors=[TaskError(WeightsError("no weights"))]))
    with pytest.raises(WeightsError, match="torn"):
        drive(FakeRay({3: [WeightsError("torn")]}))


def test_actors_that_die_at_the_start_are_replaced_a_few_times(drive):
    assert drive(FakeRay(start_errors=[DiedError("oom")] * 4))[1] == list(range(8))
    with pytest.raises(Exception, match="5 Ray actors in a row died"):
        drive(FakeRay(start_errors=[DiedError("oom")] * 5))


@pytest.mark.parametrize(
    ("nodes", "options", "expected"),
    [
        ([{"CPU": 2.0}], {}, ActorShape(1, 2, 0)),
        ([{"CPU": 2.0}], {"actors": 2}, ActorShape(2, 1, 0)),
        ([{"CPU": 8.0}, {"CPU": 3.0}], {}, ActorShape(5, 2, 0)),
        ([{"CPU": 64.0}, {"CPU": 4.0}], {"actors": 2}, ActorShape(2, 4, 0)),
        ([{"CPU": 64.0, "GPU": 8.0}, {"CPU": 16.0, "GPU": 4.0}, {"CPU": 8.0}], {}, ActorShape(12, 4, 1)),
        ([{"CPU": 64.0, "GPU": 8.0}], {"device": "cpu"}, ActorShape(32, 2, 0)),
        ([{"CPU": 4.0}], {"device": "cuda", "actors": 8}, ActorShape(8, 1, 1)),
    ],
)
def test_actors_fit_the_smallest_node(nodes, options, expected):
    assert actor_shape(nodes, EncodeConfig(source="s", store="t", **options)) == expected
