"""Commands as forks of one process: output, exit codes, signals, locks."""

import fcntl
import os
import signal
import time

import pytest

from repa_pipe.pipeline.ablation.fork_server import ForkServer

SLEEP = ["encode", "--source", "images", "--source-kind", "sleeping:open_slowly", "--store", "none"]


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Start a command with its output in `start.log`; `start.lock` is the path of the lock that it inherits."""
    (tmp_path / "sleeping.py").write_text(
        "import time\ndef open_slowly(path):\n    print('waiting', flush=True)\n    time.sleep(3)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with ForkServer(modules=("json",)) as server:

        def call(args):
            with call.log.open("ab") as log, call.lock.open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                return server.start(args, log.fileno(), lock.fileno())

        call.log, call.lock, call.server = tmp_path / "log.txt", tmp_path / ".lock", server
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
    assert command.wait() == -signal.SIGTERM
    command.terminate()  # has no effect
    assert start(["--version"]).wait() == 0


def test_a_server_that_was_killed_is_started_again(start):
    command = start(SLEEP)
    wait_until_it_sleeps(start)
    os.kill(start.server._process.pid, signal.SIGKILL)
    assert command.wait() == -signal.SIGKILL
    start.server._process.wait()
    start.lock.unlink()  # the orphan still holds the lock of the old file
    assert start(["--version"]).wait() == 0


def test_a_command_holds_the_lock_until_it_ends(start):
    command = start(SLEEP)
    wait_until_it_sleeps(start)
    with start.lock.open("w") as lock:
        with pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert command.wait() != 0  # the source is None
