"""The part of encode in a run on Ray: which errors end it, how failures read, and what actors and driver exchange.

The pool of actors is tested in ../runtime/test_actor_pool.py, real Ray in test_faults.py.
"""

import os
import pickle
import subprocess
import sys
from contextlib import contextmanager
from types import SimpleNamespace
from typing import ClassVar

import pytest

from repa_pipe.config import EncodeConfig
from repa_pipe.errors import BadImageError, ConfigError, RemoteError, SourceError, StoreError, WeightsError
from repa_pipe.pipeline.encoding import on_ray, shard
from repa_pipe.pipeline.encoding.work import FailedShard, ShardResult, ShardTask, is_fatal
from repa_pipe.pipeline.runtime import device
from repa_pipe.pipeline.runtime.actor_pool import TimeLimitError
from repa_pipe.pipeline.runtime.memory import ONE_ARENA_ENVIRONMENT
from repa_pipe.pipeline.runtime.task_queue import Failure

TASKS = [ShardTask(0, ("latents/a",)), ShardTask(2, ("features/b", "latents/a"))]


@pytest.mark.parametrize(
    ("error", "fatal"),
    [
        (ConfigError("no such device"), True),
        (StoreError("the disk is full"), True),
        (WeightsError("no weights"), True),
        (RemoteError("the bucket is out of reach"), False),
        (SourceError("an image is missing"), False),
        (BadImageError("truncated"), False),
        (TimeLimitError("not finished within 1 s"), False),
        (RuntimeError("out of memory"), False),
    ],
)
def test_errors_that_would_recur_for_every_shard_are_fatal(error, fatal):
    assert is_fatal(error) == fatal


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (SourceError("gone\nlong story"), "SourceError: gone"),
        (ValueError(), "ValueError: ValueError"),
        (TimeLimitError("not finished within 0.3 s"), "TimeLimitError: not finished within 0.3 s (--shard-timeout)"),
        (TimeoutError("the server is slow"), "TimeoutError: the server is slow"),
    ],
)
def test_a_failed_shard_is_described_in_one_line(error, cause):
    assert FailedShard.from_failure(Failure(TASKS[1], error)) == FailedShard(2, cause)


class LocalActor:
    """An actor in this process. A reference is a function that runs the call when its result is requested."""

    def __init__(self, instance):
        for name in ("ready", "run"):
            setattr(self, name, SimpleNamespace(remote=self._call(getattr(instance, name))))
        self.__ray_ready__ = SimpleNamespace(remote=lambda: lambda: True)  # Ray's own sign that an actor has a place

    def _call(self, method):
        return lambda *arguments: lambda: method(*arguments)


class LocalRay:
    """Ray without processes: one node with the given resources."""

    exceptions = SimpleNamespace(RayTaskError=ZeroDivisionError, RayError=ZeroDivisionError)

    def __init__(self, **resources):
        self.resources, self.options = resources, []

    def nodes(self):
        return [{"Alive": True, "Resources": self.resources}, {"Alive": False, "Resources": {"CPU": 64.0}}]

    def remote(self, actor_class):
        def options(**options):
            self.options.append(options)
            return SimpleNamespace(remote=lambda *arguments: LocalActor(actor_class(*arguments)))

        return SimpleNamespace(options=options)

    def wait(self, refs, num_returns, timeout):
        return refs[:num_returns], refs[num_returns:]

    def get(self, ref):
        return ref()


class FakeEncoder:
    """A ShardEncoder without models."""

    configs: ClassVar = []

    def __init__(self, config, groups, device):
        self.groups = groups
        self.configs.append(config)

    def specs(self):
        return list(self.groups)

    def run(self, task):
        return ShardResult(task.shard, 4, 0, "actor", 0.2, {}, {})


@pytest.fixture
def encode_on(monkeypatch):
    """Encode TASKS on a LocalRay; return the groups that were prepared, and the calls of the monitor."""

    def run(ray, **options):
        prepared, images, shards = [], [], []
        monitor = SimpleNamespace(on_images=images.append, on_shard=lambda result: shards.append(result.shard))
        monkeypatch.setitem(sys.modules, "ray", ray)
        monkeypatch.setattr(shard, "ShardEncoder", FakeEncoder)
        monkeypatch.setattr(shard, "use_recorded_threads", lambda *_: None)
        monkeypatch.setattr(on_ray, "warn_of_little_space", lambda *_: None)
        monkeypatch.setattr(on_ray, "prepare_groups", lambda store, specs: prepared.extend(specs))
        config = EncodeConfig(source="s", store="t", **options)
        assert on_ray.run_on_actors(config, None, TASKS, monitor) == []
        return prepared, sum(images), shards

    return run


def test_groups_are_prepared_and_results_reach_the_monitor(encode_on):
    assert encode_on(LocalRay(CPU=2.0), device="cpu") == (["features/b", "latents/a"], 8, [0, 2])


def test_actors_encode_two_shards_at_a_time_on_their_part_of_the_node(encode_on):
    ray = LocalRay(CPU=4.0)
    encode_on(ray, device="cpu", actors=1)
    options = {"num_cpus": 4, "num_gpus": 0, "max_restarts": 0, "max_task_retries": 0, "max_concurrency": 2}
    assert ray.options == [options | {"runtime_env": {"env_vars": ONE_ARENA_ENVIRONMENT}}]


def test_actors_get_absolute_paths_since_their_current_folder_is_another_one(encode_on, tmp_path, monkeypatch):
    weights = ("mae-vit-l=weights/mae.pth",)
    monkeypatch.chdir(tmp_path)
    encode_on(LocalRay(CPU=2.0), device="cpu", encoder="mae-vit-l", encoder_weights=weights)
    config = FakeEncoder.configs[-1]
    assert (config.source, config.store) == (f"{tmp_path}/s", f"{tmp_path}/t")
    assert config.weights_of("mae-vit-l") == f"{tmp_path}/weights/mae.pth"


def test_actors_on_gpus_keep_the_default_allocator(encode_on, monkeypatch):
    monkeypatch.setattr(device, "choose_device", lambda _: SimpleNamespace(type="cuda"))
    ray = LocalRay(CPU=8.0, GPU=1.0)
    encode_on(ray)
    options = {"num_cpus": 8, "num_gpus": 1, "max_restarts": 0, "max_task_retries": 0, "max_concurrency": 2}
    assert ray.options == [options]


@pytest.mark.parametrize(
    ("address", "inherited", "of_actors"),
    [("local", "1", {}), ("192.0.2.1:6379", None, ONE_ARENA_ENVIRONMENT)],
)
def test_actors_on_this_machine_inherit_their_environment(monkeypatch, address, inherited, of_actors):
    monkeypatch.delenv("MALLOC_ARENA_MAX", raising=False)
    seen = []

    @contextmanager
    def session(*_):
        seen.append(os.environ.get("MALLOC_ARENA_MAX"))
        yield

    monkeypatch.setattr(on_ray, "ray_session", session)
    monkeypatch.setattr(on_ray, "run_on_actors", lambda *arguments: seen.append(arguments[-1]))
    on_ray.run_on_ray(EncodeConfig(source="s", store="t", ray_address=address, device="cpu"), None, TASKS, None)
    assert seen == [inherited, of_actors]
    assert "MALLOC_ARENA_MAX" not in os.environ


def test_the_process_that_distributes_shards_does_not_import_torch():
    done = ShardResult(0, 4, 0, "actor", 0.2, {"latents/tiny": 0.1}, {})
    check = (
        "import pickle, sys; import repa_pipe.pipeline.encode, repa_pipe.pipeline.encoding.on_ray; "
        "pickle.load(sys.stdin.buffer); print('torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", check], input=pickle.dumps(done), capture_output=True, check=True)
    assert found.stdout == b"False\n"
