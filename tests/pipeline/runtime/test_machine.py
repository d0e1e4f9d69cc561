"""Facts about the machine and the user's code."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from repa_pipe.pipeline.runtime import cpu, machine
from repa_pipe.pipeline.runtime.machine import git_state, process_start, relevant_cpu_flags, software_versions


def git(folder, *args):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", *identity, *args], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path):
    git(tmp_path, "init", "--quiet")
    (tmp_path / "code.py").write_text("1")
    git(tmp_path, "add", "code.py")
    git(tmp_path, "commit", "--quiet", "-m", "first")
    return tmp_path


def test_the_state_of_a_repository_is_its_commit_and_whether_tracked_files_changed(repository):
    (repository / "folder").mkdir()
    clean = git_state(repository / "folder")
    assert len(clean.commit) == 40
    (repository / "untracked").write_text("")
    assert git_state(repository) == clean
    (repository / "code.py").write_text("2")
    assert (git_state(repository).commit, git_state(repository).dirty) == (clean.commit, True)
    assert clean.dirty is False


def test_there_is_no_state_outside_of_a_repository_without_a_commit_and_without_git(tmp_path, monkeypatch, repository):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    empty = tmp_path.parent / "empty"
    empty.mkdir()
    assert git_state(empty) is None
    git(empty, "init", "--quiet")
    assert git_state(empty) is None
    monkeypatch.setenv("PATH", "")
    assert git_state(repository) is None


def test_a_git_command_that_hangs_is_ended(repository, tmp_path, monkeypatch):
    slow = tmp_path / "bin" / "git"
    slow.parent.mkdir()
    slow.write_text('#!/bin/sh\n[ "$1" = rev-parse ] && echo 0123 || exec sleep 60\n')
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", f"{slow.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(machine, "GIT_TIMEOUT_S", 0.3)
    assert (git_state(repository).commit, git_state(repository).dirty) == ("0123", None)


def test_a_process_has_a_start_until_it_has_ended():
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert process_start(process.pid) == pytest.approx(time.time(), abs=5)
    process.stdin.close()
    while Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.01)
    assert process_start(process.pid) is None  # ended, but its parent has not asked for its exit status
    process.wait()
    assert process_start(process.pid) is None


def test_versions_are_those_of_the_installed_packages():
    import torch
    import zarr

    found = software_versions()
    assert list(found)[:2] == ["repa-pipe", "python"]
    assert found["python"] == sys.version.split()[0]
    assert found["torch"] == torch.__version__.partition("+")[0] or found["torch"] == torch.__version__
    assert found["zarr"] == zarr.__version__


def test_only_relevant_flags_of_the_cpu_are_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(cpu, "CPUINFO", tmp_path / "cpuinfo")
    cpu.CPUINFO.write_text("model name\t: A CPU\nflags\t\t: fpu avx2 amx_bf16 avx512f sse\n")
    monkeypatch.setattr(machine, "CPUINFO", cpu.CPUINFO)
    assert relevant_cpu_flags() == ("avx2", "avx512f", "amx_bf16")
    assert machine.cpu_model() == "A CPU"
    cpu.CPUINFO.unlink()
    assert relevant_cpu_flags() == ()
    assert machine.cpu_model() == os.uname().machine


def test_memory_is_read_in_gib():
    total, available = machine.memory_gib()
    assert 0 < available < total
    assert total == pytest.approx(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, rel=0.01)
