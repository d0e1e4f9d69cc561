"""Sampling on several processes, real ones: they are killed and stopped by signals, and others resume their work."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from repa_pipe.config import SampleConfig
from repa_pipe.pipeline import sample, train

pytestmark = pytest.mark.slow
BLOCKS = 24


@pytest.fixture
def config(config_of, tmp_path):
    run = train.run(config_of(max_train_steps=1)).run
    return SampleConfig(
        checkpoint=run,
        num_fid_samples=4 * BLOCKS,
        per_proc_batch_size=4,
        num_steps=12,
        mode="sde",
        device="cpu",
        out=str(tmp_path / "out.npz"),
    )


@pytest.fixture
def expected(config, tmp_path):
    """The bytes of the .npz that one process writes without interruption."""
    from dataclasses import replace

    return Path(sample.run(replace(config, out=str(tmp_path / "whole.npz"))).npz).read_bytes()


def start(config, ranks=1, **variables):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    command = [sys.executable, *launcher, "-m", "repa_pipe.cli", config.kind, *config.flags()]
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | variables
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def blocks_of(config):
    return list(Path(config.out).with_suffix(".partial").glob("*.npy"))


def wait_for_blocks(config, count, *processes):
    while len(blocks_of(config)) < count:
        assert [process.poll() for process in processes] == [None] * len(processes), processes[0].communicate()[1]
        time.sleep(0.02)


def children_of(process):
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def test_a_signal_ends_sampling_after_its_block_with_the_documented_code(config, expected):
    process = start(config)
    wait_for_blocks(config, 3, process)
    process.send_signal(signal.SIGUSR1)
    sent = time.monotonic()
    _, errors = process.communicate(timeout=60)
    assert time.monotonic() - sent < 10
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "warning: interrupted; re-run the same command to resume"
    assert "Traceback" not in errors
    assert 3 <= len(blocks_of(config)) < BLOCKS
    sample.run(config)
    assert Path(config.out).read_bytes() == expected


def test_work_of_two_ranks_of_which_one_was_killed_is_resumed_by_others(config, expected):
    process = start(config, ranks=2)
    wait_for_blocks(config, 8, process)
    ranks = [pid for pid in children_of(process) if b"repa_pipe.cli" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(ranks[1], signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    found = len(blocks_of(config))
    assert 8 <= found < BLOCKS
    resumed = start(config, ranks=3)
    out, errors = resumed.communicate(timeout=300)
    assert resumed.returncode == 0, errors
    assert errors.count("images already exist") == 1
    assert out.count('"num_images"') == 1
    assert Path(config.out).read_bytes() == expected


def test_a_signal_to_the_launcher_stops_all_ranks_with_one_line(config, expected):
    process = start(config, ranks=2)
    wait_for_blocks(config, 8, process)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert errors.count("interrupted; re-run the same command to resume") == 1
    assert len(blocks_of(config)) < BLOCKS
    sample.run(config)
    assert Path(config.out).read_bytes() == expected


@pytest.mark.parametrize("killed", [0, 1])
def test_ranks_without_a_launcher_name_a_rank_that_is_lost(config, killed):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = [start(config, RANK=str(rank), **place) for rank in range(2)]
    wait_for_blocks(config, 4, *processes)
    processes[killed].send_signal(signal.SIGKILL)
    left = processes[1 - killed]
    _, errors = left.communicate(timeout=120)
    assert left.returncode == 2, errors
    assert "Traceback" not in errors
    message = (
        "rank 1 of 2 lost the connection to the first rank"
        if killed == 0
        else "rank 1 of 2 has given no sign of life for 60 s"
    )
    assert message in errors.splitlines()[-1]
    processes[killed].communicate()
