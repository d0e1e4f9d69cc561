"""Quotas of control groups, in the layouts of both versions."""

import pytest

from repa_pipe import control_groups
from repa_pipe.pipeline.runtime import cpu_quota, machine


@pytest.fixture
def quota_of(tmp_path, monkeypatch):
    """Return the quota for the contents of /proc/self/cgroup and of files below /sys/fs/cgroup."""

    def quota(own, files):
        (tmp_path / "self").write_text(own)
        for name, text in files.items():
            path = tmp_path / "sys" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")
        monkeypatch.setattr(control_groups, "OWN_CGROUPS", tmp_path / "self")
        monkeypatch.setattr(control_groups, "CGROUPS", tmp_path / "sys")
        return cpu_quota.cpu_quota()

    return quota


V1 = "12:memory:/docker/1f\n4:cpu,cpuacct:/docker/1f\n1:name=systemd:/docker/1f\n"


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "250000 100000"}, 2.5),
        ("0::/\n", {"cpu.max": "max 100000"}, None),
        ("0::/\n", {}, None),
        ("0::/job/step\n", {"job/step/cpu.max": "max 100000", "job/cpu.max": "400000 100000"}, 4),
        ("0::/job/step\n", {"job/step/cpu.max": "300000 100000", "job/cpu.max": "400000 100000"}, 3),
        (V1, {"cpu,cpuacct/cpu.cfs_quota_us": "150000", "cpu,cpuacct/cpu.cfs_period_us": "100000"}, 1.5),
        (V1, {"cpu/docker/1f/cpu.cfs_quota_us": "50000", "cpu/docker/1f/cpu.cfs_period_us": "50000"}, 1),
        (V1, {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ("", {"cpu.max": "100000 100000"}, None),
    ],
)
def test_the_lowest_quota_counts(quota_of, own, files, expected):
    assert quota_of(own, files) == expected


def test_there_is_no_quota_where_there_are_no_control_groups(monkeypatch, tmp_path):
    monkeypatch.setattr(control_groups, "OWN_CGROUPS", tmp_path / "nowhere")
    assert cpu_quota.cpu_quota() is None


@pytest.mark.parametrize(("quota", "expected"), [(None, 8), (0.5, 1), (2.9, 2), (16.0, 8)])
def test_a_process_uses_the_cpus_of_its_affinity_within_the_quota(monkeypatch, quota, expected):
    monkeypatch.setattr(machine, "cpu_quota", lambda: quota)
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: set(range(8)))
    assert machine.num_usable_cpus() == expected
