import os
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray._private import ray_constants  # stays importable while `ray` is replaced

from repa_pipe.config import EncodeConfig, SampleConfig, TrainConfig
from repa_pipe.errors import ConfigError
from repa_pipe.pipeline.ablation.on_ray import JobActor
from repa_pipe.pipeline.runtime import ray_session as ray_session_module
from repa_pipe.pipeline.runtime.machine import num_usable_cpus
from repa_pipe.pipeline.runtime.ray_session import ActorShape, actor_options, actor_shape, enter_folder, ray_session


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
        ("auto", "10.0.0.1:6379", "10.0.0.1:6379"),  # as ray.init resolves it
        ("auto", None, "auto"),
    ],
)
def test_a_session_connects_to_the_given_cluster_or_starts_one_here(monkeypatch, given, variable, expected):
    """Without an address, `ray.init()` would join any cluster that it finds on this machine."""
    calls = []
    ray = SimpleNamespace(
        init=lambda **options: calls.append(options["address"]), shutdown=lambda: calls.append("shutdown")
    )
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr(ray_session_module, "require_cluster", lambda address, origin: None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if variable:
        monkeypatch.setenv("RAY_ADDRESS", variable)
    with pytest.raises(KeyboardInterrupt), ray_session(given):
        assert calls == [expected]
        raise KeyboardInterrupt
    assert calls == [expected, "shutdown"]


@pytest.fixture
def local_options(monkeypatch):
    """Return the options with which a local session is started."""
    found = {}
    ray = SimpleNamespace(init=lambda **options: found.update(options), shutdown=lambda: None)
    monkeypatch.setitem(sys.modules, "ray", ray)
    for name in ("RAY_ADDRESS", "RAY_TMPDIR", "TMPDIR"):
        monkeypatch.delenv(name, raising=False)

    def start():
        with ray_session("local"):
            folder = found["_temp_dir"]
            assert folder is None or Path(folder).is_dir()
        assert folder is None or not Path(folder).exists()
        return found

    return start


def test_a_local_session_has_the_cpus_that_the_process_may_use(local_options, monkeypatch):
    assert local_options()["num_cpus"] == num_usable_cpus()
    monkeypatch.setattr(ray_session_module, "num_usable_cpus", lambda: 3)
    assert local_options()["num_cpus"] == 3


@pytest.mark.parametrize("variable", ["TMPDIR", "RAY_TMPDIR"])
@pytest.mark.parametrize("length", [30, 36, 37, 90])
def test_the_paths_of_rays_sockets_are_never_too_long(local_options, monkeypatch, variable, length):
    monkeypatch.setenv(variable, "/tmp/".ljust(length, "x"))
    folder = local_options()["_temp_dir"]
    assert (folder is None) == (length <= 36)
    session = "session_2026-11-26_21-23-09_857419_4194304"
    parent = folder or f"{'/tmp/'.ljust(length, 'x')}/ray"
    assert len(f"{parent}/{session}/sockets/plasma_store") <= 107


def test_a_gpu_that_this_machine_lacks_is_not_waited_for(local_options, monkeypatch):
    ray = SimpleNamespace(init=lambda **_: None, shutdown=lambda: None, cluster_resources=lambda: {"CPU": 2.0})
    monkeypatch.setitem(sys.modules, "ray", ray)
    for device in (None, "cpu"):
        with ray_session("local", device):
            pass
    with (
        pytest.raises(ConfigError, match=r"^--device is 'cuda:1': this machine has no GPU"),
        ray_session("local", "cuda:1"),
    ):
        pass


def test_actors_enter_the_folder_of_the_driver_if_their_node_has_it(tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    enter_folder(str(tmp_path / "nowhere"))
    assert Path.cwd() == Path("/")
    enter_folder(str(tmp_path))
    assert Path.cwd() == tmp_path


def test_a_run_of_a_sweep_needs_the_folder_of_the_driver(tmp_path):
    with pytest.raises(
        ConfigError, match=r"^\S+ lacks the folder .*nowhere \(No such file .*folder that all nodes share$"
    ):
        JobActor(str(tmp_path / "nowhere")).ready()


def test_a_refused_connection_is_one_line(monkeypatch):
    def init(**options):
        raise RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.1")

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(init=init))
    monkeypatch.setattr(ray_session_module, "require_cluster", lambda address, origin: None)
    expected = r"^--ray-address is '10.0.0.1:6379': Ray cannot connect \(Version mismatch: .* with:\): check [^\n]+$"
    with pytest.raises(ConfigError, match=expected), ray_session("10.0.0.1:6379"):
        pass


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


def test_ray_on_this_machine_is_started_as_one_that_forms_no_cluster(monkeypatch):
    found = []
    ray = SimpleNamespace(init=lambda **options: found.append(ray_constants.ENABLE_RAY_CLUSTER), shutdown=lambda: None)
    monkeypatch.setitem(sys.modules, "ray", ray)
    with ray_session("local"):
        assert ray_constants.ENABLE_RAY_CLUSTER
    assert found == [False]


def listening():
    """Return address and inode of every socket that listens on this machine."""
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    return {(row[1].rpartition(":")[0], row[9]) for row in rows if row[3] == "0A"}


LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}  # 127.0.0.1, twice; ::1


@pytest.mark.slow
def test_no_port_of_a_local_session_is_open_to_other_machines(monkeypatch):
    import ray

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with ray_session("local"):
        actor = ray.remote(JobActor).options(num_cpus=1).remote("/")
        ray.get(actor.ready.remote())
        children = [os.getpid()]
        for process in children:  # grows
            tasks = Path(f"/proc/{process}/task").glob("*/children")
            children += [int(child) for task in tasks for child in task.read_text().split()]
        sockets = set()
        for process in children:
            for descriptor in Path(f"/proc/{process}/fd").iterdir():
                with suppress(OSError):
                    sockets.add(str(descriptor.readlink()).removeprefix("socket:[").rstrip("]"))
        ports = [address for address, inode in listening() if inode in sockets]
    assert len(ports) >= 4
    assert set(ports) <= LOOPBACK
