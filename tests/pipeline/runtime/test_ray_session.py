import sys
from types import SimpleNamespace

import pytest

from repa_pipe.config import EncodeConfig, SampleConfig, TrainConfig
from repa_pipe.pipeline.runtime.ray_session import ActorShape, actor_options, actor_shape, ray_session


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
    assert actor_shape(nodes, options.get("actors"), options.get("device")) == expected


def test_ray_neither_restarts_actors_nor_retries_tasks():
    options = actor_options(ActorShape(12, 4, 1))
    assert options == {"num_cpus": 4, "num_gpus": 1, "max_restarts": 0, "max_task_retries": 0}


@pytest.mark.parametrize(
    ("given", "variable", "expected"),
    [
        (None, None, "local"),
        (None, "10.0.0.1:6379", "10.0.0.1:6379"),
        ("ray://head:10001", "10.0.0.1:6379", "ray://head:10001"),
        ("local", "10.0.0.1:6379", "local"),
    ],
)
def test_a_session_connects_to_the_given_cluster_or_starts_one_here(monkeypatch, given, variable, expected):
    """Without an address, `ray.init()` would join any cluster that it finds on this machine."""
    calls = []
    ray = SimpleNamespace(
        init=lambda **options: calls.append(options["address"]), shutdown=lambda: calls.append("shutdown")
    )
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if variable:
        monkeypatch.setenv("RAY_ADDRESS", variable)
    with pytest.raises(KeyboardInterrupt), ray_session(given):
        assert calls == [expected]
        raise KeyboardInterrupt
    assert calls == [expected, "shutdown"]


@pytest.mark.parametrize(
    "config_of",
    [
        lambda **options: EncodeConfig(source="images", store="store", **options),
        lambda **options: TrainConfig(store="store", **options),
        lambda **options: SampleConfig(checkpoint="run", **options),
    ],
    ids=["encode", "train", "sample"],
)
def test_a_ray_address_alone_means_ray(config_of):
    assert not config_of().uses_ray
    assert config_of(ray=True).uses_ray
    assert config_of(ray_address="auto").uses_ray
