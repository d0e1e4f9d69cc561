"""Commands on a real Ray cluster that has no free CPU."""

import json
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from repa_pipe.config import EncodeConfig

pytestmark = pytest.mark.slow
LINE = "Ray has no place for a worker with 1 CPU after "


@pytest.fixture
def cluster():
    """A cluster whose head node has no CPU."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 10**8})
    yield cluster
    cluster.shutdown()


@pytest.fixture
def start(cluster, tmp_path):
    """Start a command on the cluster; return its process, and the files of its output and its messages."""
    started = []

    def start_command(*words):
        out, messages = (tmp_path / f"{words[0]}.{name}" for name in ("out", "messages"))
        command = [sys.executable, "-m", "repa_pipe.cli", *words, "--ray-address", cluster.address]
        with out.open("w") as out_file, messages.open("w") as message_file:
            started.append(subprocess.Popen(command, stdout=out_file, stderr=message_file))
        return started[-1], out, messages

    yield start_command
    for process in started:
        process.kill()
        process.wait()


def wait_for_line(process, messages, seconds):
    """Return the first line that says that the cluster has no room."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        for line in messages.read_text().splitlines():
            if LINE in line:
                return line
        time.sleep(0.1)
    pytest.fail(f"no line within {seconds} s, but: {messages.read_text()}")


def test_a_cluster_without_cpus_is_reported_and_used_once_it_has_some(cluster, start, tmp_path, config_of):
    (tmp_path / "images/class").mkdir(parents=True)
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"images/class/{number}.png")
    config = EncodeConfig(source=str(tmp_path / "images"), store=str(tmp_path / "new"), vae="tiny-kl-f8", device="cpu")
    encode, out, messages = start(*config.command().split()[1:])
    train, _, train_messages = start(*config_of(max_train_steps=1).command().split()[1:])
    for process, found in ((encode, messages), (train, train_messages)):
        line = wait_for_line(process, found, 30 + 30)  # and to start two processes on two cores
        assert "the cluster has 1 node with 0 CPUs, 0 of them free; waiting for nodes" in line
    cluster.add_node(num_cpus=2, object_store_memory=10**8)
    assert encode.wait(timeout=120) == 0, messages.read_text()
    assert json.loads(out.read_text())["encoded"] == 4
    assert train.wait(timeout=180) == 0, train_messages.read_text()
