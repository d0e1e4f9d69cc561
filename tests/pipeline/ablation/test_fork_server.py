"""Commands as forks of one process: output, exit codes, signals."""

import os
import signal
import time

import pytest

from repa_pipe.pipeline.ablation.fork_server import ForkServer
from repa_pipe.pipeline.runtime.signals import INTERRUPTED

SLEEP = ["encode", "--source", "images", "--source-kind", "sleeping", "--store", "none"]


@pytest.fixture
def start(tmp_path, monkeypatch, install_plug_in):
    """Start a command with its output in `start.log`."""
    install_plug_in(
        "import time\ndef open_slowly(path):\n    print('waiting', flush=True)\n    time.sleep(3)\n",
        sleeping="open_slowly",
    )
    monkeypatch.chdir(tmp_path)
    with ForkServer(modules=("json",)) as server:

        def call(args):
            with call.log.open("ab") as log:
                return server.start(args, log.fileno())

        call.log, call.server = tmp_path / "log.txt", server
        yield call


def wait_until_it_sleeps(start):
    for _ in range(600):
        if b"waiting" in start.log.read_bytes():
            return
        time.sleep(0.1)
    pytest.fail("timeout")


def test_output_is_in_the_log_and_the_exit_code_is_returned(start, capfd):
    assert start(["--version"]).wait() == 0
    assert start(["store", "info", "nowhere"]).wait() == 2
    assert start(["unknown"]).wait() == 2
    text = start.log.read_text()
    assert text.startswith("repa-pipe, version ")
    assert "\nerror: " in text
    assert "No such command 'unknown'" in text
    assert capfd.readouterr().out == ""


def test_a_command_that_is_terminated_does_not_affect_the_next_one(start):
    command = start(SLEEP)
    wait_until_it_sleeps(start)
    assert command.poll() is None
    command.terminate()
    assert command.wait() == INTERRUPTED
    command.terminate()  # has no effect
    assert start(["--version"]).wait() == 0


def test_a_server_that_was_killed_is_started_again(start):
    command = start(SLEEP)
    wait_until_it_sleeps(start)
    os.kill(start.server._process.pid, signal.SIGKILL)
    assert command.wait() == -signal.SIGKILL
    start.server._process.wait()
    assert start(["--version"]).wait() == 0
