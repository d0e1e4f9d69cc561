"""Leases: real processes that hold, contend, are killed and suspended. Other machines are simulated by another name.

Whether a network file system shows one client what another one has just written cannot be tested here.
"""

import errno
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from repa_pipe.errors import BusyError
from repa_pipe.pipeline.runtime import lease as lease_module
from repa_pipe.pipeline.runtime.lease import lease

_HOLD = """
import sys, time
from pathlib import Path
from repa_pipe.pipeline.runtime import lease
lease.BEAT_S, lease.POLL_S, lease.SILENT_POLLS = 0.05, 0.1, 10
folder, machine, seconds = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
if machine != "same":
    lease._machine = lambda: machine
with lease.lease(folder):
    print("held", flush=True)
    time.sleep(seconds)
    lease.require_held()
    (folder / "written").touch()
"""

_CONTEND = """
import sys, time
from pathlib import Path
from repa_pipe.errors import BusyError
from repa_pipe.pipeline.runtime.lease import lease
folder, inside, rounds = Path(sys.argv[1]), Path(sys.argv[1]) / "inside", 0
until = time.monotonic() + float(sys.argv[2])
while time.monotonic() < until:
    try:
        with lease(folder):
            inside.touch(exist_ok=False)
            time.sleep(0.001)
            inside.unlink()
            rounds += 1
    except BusyError:
        pass
print(rounds)
"""


@pytest.fixture
def hold(tmp_path):
    """Start a process that holds the lease of `tmp_path / "folder"`, and return it once it does."""
    started = []

    def start(machine="same", seconds=60.0):
        command = [sys.executable, "-c", _HOLD, str(tmp_path / "folder"), machine, str(seconds)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout.readline() == "held\n", process.communicate()
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(lease_module, "POLL_S", 0.05)


def test_a_second_process_is_refused_by_the_name_of_the_first(hold, tmp_path):
    process = hold()
    with pytest.raises(BusyError) as refused, lease(tmp_path / "folder"):
        pass
    expected = f"{tmp_path / 'folder'} is in use by process {process.pid} on {socket.gethostname()} (-c "
    assert str(refused.value).startswith(expected)


def test_a_lease_is_released_at_the_end_and_leaves_no_file(tmp_path):
    with lease(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == [".lease-1"]
        with pytest.raises(BusyError, match=f"process {os.getpid()}"), lease(tmp_path):
            pass
        with lease(tmp_path, "other"):
            pass
    assert list(tmp_path.iterdir()) == []


def test_the_lease_of_a_killed_process_is_taken_at_once(hold, tmp_path):
    process = hold()
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # a zombie: its parent has not asked for its end
    start = time.monotonic()
    with lease(tmp_path / "folder"):
        assert time.monotonic() - start < 1
        assert [path.name for path in (tmp_path / "folder").iterdir()] == [".lease-2"]


def test_a_process_with_the_id_of_the_holder_is_not_the_holder(tmp_path):
    with lease(tmp_path):
        values = json.loads((tmp_path / ".lease-1").read_text())
    (tmp_path / ".lease-1").write_text(json.dumps(values | {"ticks": values["ticks"] - 1}))
    with lease(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == [".lease-2"]


def test_a_holder_on_another_machine_is_known_by_its_heartbeat(hold, tmp_path, quick):
    process = hold("another machine")
    start = time.monotonic()
    with pytest.raises(BusyError, match=f"process {process.pid}"), lease(tmp_path / "folder"):
        pass
    assert time.monotonic() - start < 1


def test_the_lease_of_a_silent_machine_is_taken_after_a_wait(hold, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", "repa_pipe")
    monkeypatch.setattr(lease_module, "POLL_S", 0.02)
    process = hold("another machine")
    process.kill()
    process.wait()
    start = time.monotonic()
    with lease(tmp_path / "folder"):
        assert 0.02 * lease_module.SILENT_POLLS <= time.monotonic() - start < 5
    assert f"was left by process {process.pid} on {socket.gethostname()}" in caplog.text
    assert "waiting up to 0.6 s" in caplog.text


def test_nobody_waits_for_more_than_a_minute():
    assert lease_module.BEAT_S * 4 < lease_module.POLL_S * lease_module.SILENT_POLLS <= 30


@pytest.mark.parametrize("content", [b"", b'{"host": "a"', b'{"pid": 0}', b"[" * 100_000, b"\xff"])
def test_a_damaged_lease_is_taken_after_a_wait(tmp_path, monkeypatch, content):
    monkeypatch.setattr(lease_module, "POLL_S", 0.01)
    (tmp_path / ".lease-7").write_bytes(content)
    with lease(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == [".lease-8"]


def test_files_of_other_names_and_the_lock_of_earlier_versions_are_ignored(tmp_path):
    for name in (".lock", ".lease-", ".lease-x", ".other.lease-3"):
        (tmp_path / name).write_text("anything")
    with lease(tmp_path):
        assert (tmp_path / ".lease-1").exists()


def test_a_folder_in_which_nothing_can_be_written_needs_no_lease(tmp_path):
    with lease(Path("/sys/kernel")):
        pass  # even root cannot create files there
    with pytest.raises(OSError, match="File name too long"), lease(tmp_path, "a" * 300):
        pass


def test_a_suspended_holder_whose_lease_was_taken_ends_without_writing(hold, tmp_path, quick):
    process = hold("another machine", seconds=0.3)
    process.send_signal(signal.SIGSTOP)
    with lease(tmp_path / "folder"):
        process.send_signal(signal.SIGCONT)
        errors = process.communicate()[1]
    assert process.returncode == lease_module.EXIT_CODE
    assert f"{tmp_path / 'folder'} was taken over by process {os.getpid()} on {socket.gethostname()}" in errors
    assert list((tmp_path / "folder").iterdir()) == []


def test_a_holder_checks_its_lease_before_it_writes(hold, tmp_path):
    script = _HOLD.replace("lease.BEAT_S,", "lease.BEAT_S = 3600.0; unused,")
    command = [sys.executable, "-c", script, str(tmp_path), "same", "0.5"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        (tmp_path / ".lease-1").unlink()
        errors = process.communicate()[1]
    assert process.returncode == lease_module.EXIT_CODE
    assert "or its files were moved or deleted" in errors
    assert not (tmp_path / "written").exists()


def test_a_lease_that_others_had_since_it_was_listed_is_not_taken(tmp_path, monkeypatch, quick):
    """Another command takes the lease after a dead holder and releases it, and a third one takes it with number 1."""
    dead, alive = tmp_path / ".lease-1", []
    dead.write_text("damaged")
    monkeypatch.setattr(lease_module, "SILENT_POLLS", 1)
    create = lease_module._create

    def create_after_others(held):
        if not alive:
            alive.append(held.content.replace(b'"token":"', b'"token":"x').replace(b'"token": "', b'"token": "x'))
            dead.write_bytes(alive[0])
        return create(held)

    monkeypatch.setattr(lease_module, "_create", create_after_others)
    with pytest.raises(BusyError, match=f"process {os.getpid()}"), lease(tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [".lease-1"]
    assert dead.read_bytes() == alive[0]


def test_the_lease_of_another_process_is_not_released(tmp_path):
    with lease(tmp_path):
        (tmp_path / ".lease-1").write_text("of another process")
    assert (tmp_path / ".lease-1").read_text() == "of another process"


def test_a_full_disk_leaves_no_lease(tmp_path, monkeypatch):
    class Full(io.BytesIO):
        def write(self, _):
            raise OSError(errno.ENOSPC, "No space left on device")

    def open_full(path, mode="r", *args, **options):
        if mode != "xb":
            return original(path, mode, *args, **options)
        path.touch(exist_ok=False)
        return Full()

    original = Path.open
    monkeypatch.setattr(Path, "open", open_full)
    with pytest.raises(OSError, match="No space left on device"), lease(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_of_many_contenders_for_a_dead_lease_one_at_a_time_succeeds(hold, tmp_path):
    process = hold()
    process.kill()
    process.wait()
    command = [sys.executable, "-c", _CONTEND, str(tmp_path / "folder"), "1"]
    contenders = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(6)]
    results = [contender.communicate() for contender in contenders]
    assert [error for _, error in results if error] == []  # such as FileExistsError: two were inside
    assert sum(int(rounds) for rounds, _ in results) > 5
    assert list((tmp_path / "folder").iterdir()) == []
