"""Temporary files that killed writers leave, and who may delete them."""

import os
import socket
import subprocess
import sys
import time

import pytest

from repa_pipe.stores import files
from repa_pipe.stores.files import remove_abandoned, remove_leftovers, temporary_path

DAY_S = 24 * 3600


@pytest.fixture
def left(tmp_path):
    """Temporary files of `a.json`: of a process that has ended, of this one, of another host, and of no known form."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    here = socket.gethostname()
    names = {
        "ended": f"{here}-{ended.pid}-0f",
        "alive": f"{here}-{os.getpid()}-0f",
        "other": "other-host-7-0f",
        "odd": "x",
    }
    paths = {kind: tmp_path / f"a.json.tmp-{name}" for kind, name in names.items()}
    for path in paths.values():
        path.write_bytes(b"half")
    return paths


def age(path, seconds):
    os.utime(path, (time.time() - seconds,) * 2)


def test_names_of_temporary_files_state_their_process(tmp_path):
    assert temporary_path(tmp_path / "a").name.startswith(f"a.tmp-{socket.gethostname()}-{os.getpid()}-")


def test_abandoned_files_are_those_of_ended_processes_and_old_ones_of_other_hosts(left, tmp_path):
    age(left["other"], DAY_S - 600)
    age(left["alive"], 2 * DAY_S)
    assert remove_abandoned(tmp_path) == 1
    assert {kind for kind, path in left.items() if path.exists()} == {"alive", "other", "odd"}
    for kind in ("other", "odd"):
        age(left[kind], DAY_S + 600)
    assert remove_abandoned(tmp_path, "b*") == 0
    assert remove_abandoned(tmp_path, "a*") == 2
    assert list(tmp_path.iterdir()) == [left["alive"]]


def test_a_folder_is_as_old_as_the_last_change_in_it(tmp_path):
    folder = tmp_path / "group.tmp-other-host-7-0f"
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "shard").touch()
    for path in (folder / "inner", folder):
        age(path, 2 * DAY_S)
    assert remove_abandoned(tmp_path) == 0
    age(folder / "inner" / "shard", 2 * DAY_S)
    assert remove_abandoned(tmp_path) == 1
    assert not folder.exists()


def test_the_age_of_files_is_measured_by_the_clock_of_the_file_system(left, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_file_system_time", lambda folder: time.time_ns() + 2 * DAY_S * 10**9)
    assert remove_abandoned(tmp_path) == 3
    assert list(tmp_path.iterdir()) == [left["alive"]]


def test_the_owner_of_a_name_deletes_all_of_its_temporary_files_and_no_others(left, tmp_path):
    other = tmp_path / "b.json.tmp-other-host-7-0f"
    other.touch()
    assert remove_leftovers(tmp_path, "a.json") == 4
    assert list(tmp_path.iterdir()) == [other]
