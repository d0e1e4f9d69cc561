"""The load of the machine: rates since the last call, and what is left out where it is unknown."""

import os
import time

import pytest
import torch

from repa_pipe.pipeline.runtime import system_metrics
from repa_pipe.pipeline.runtime.system_metrics import NAMES, SystemMetrics


def busy(seconds):
    start = time.process_time()
    while time.process_time() - start < seconds:
        pass


def test_cores_are_cpu_time_per_second_since_the_last_call():
    metrics = SystemMetrics(torch.device("cpu"))
    start = time.perf_counter()
    busy(0.3)
    working = metrics.read()["cpu_cores"] * (time.perf_counter() - start)
    assert 0.25 < working < 1
    time.sleep(0.3)
    assert metrics.read()["cpu_cores"] < 0.5 * working / 0.3


def test_memory_is_that_of_the_process():
    psutil = pytest.importorskip("psutil")
    kept = bytearray(os.urandom(1 << 20) * 256)
    expected = psutil.Process().memory_info().rss / 2**30
    assert SystemMetrics(torch.device("cpu")).read()["process_gib"] == pytest.approx(expected, abs=0.05)
    assert expected > len(kept) / 2**30


def test_reads_are_mib_from_disks(monkeypatch, tmp_path):
    file = tmp_path / "io"
    monkeypatch.setattr(system_metrics, "_IO", file)
    file.write_text(f"rchar: 1\nread_bytes: {1 << 20}\n")
    metrics = SystemMetrics(torch.device("cpu"))
    file.write_text(f"rchar: 1\nread_bytes: {(1 << 20) + (64 << 20)}\n")
    metrics._at -= 2  # as if two seconds had passed
    assert metrics.read()["disk_read_mib_per_s"] == pytest.approx(32, rel=0.05)


def test_what_the_machine_does_not_tell_is_left_out(monkeypatch, tmp_path):
    monkeypatch.setattr(system_metrics, "_IO", tmp_path / "none")
    monkeypatch.setattr(system_metrics, "_MEMORY", tmp_path / "none")
    assert SystemMetrics(torch.device("cpu")).read().keys() == {"cpu_cores"}


@pytest.mark.parametrize("has_nvml", [True, False])
def test_a_gpu_has_memory_and_with_nvml_utilization_and_temperature(monkeypatch, has_nvml):
    calls = []

    def utilization(device):
        calls.append(device)
        if not has_nvml:
            raise ModuleNotFoundError("nvidia-ml-py does not seem to be installed")
        return 75

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1 << 30, 5 << 30))
    monkeypatch.setattr(torch.cuda, "utilization", utilization)
    monkeypatch.setattr(torch.cuda, "temperature", lambda device: 60)
    metrics = SystemMetrics(torch.device("cuda"))
    for _ in range(2):
        found = {name: value for name, value in metrics.read().items() if name.startswith("gpu_")}
        nvml = {"gpu_utilization": 0.75, "gpu_celsius": 60.0} if has_nvml else {}
        assert found == {"gpu_memory_gib": 4.0, **nvml}
    assert len(calls) == (2 if has_nvml else 1)
    assert set(metrics.read()) <= set(NAMES)
