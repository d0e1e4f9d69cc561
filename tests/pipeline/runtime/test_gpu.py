"""Whether there is a GPU: torch is only asked on machines with the device file of a driver."""

import sys

import pytest
import torch

from repa_pipe.pipeline.ablation.fork_server import ForkServer, fork_server
from repa_pipe.pipeline.runtime import gpu


@pytest.mark.skipif(sys.platform != "linux", reason="device files are Linux's")
@pytest.mark.parametrize("has_gpu", [False, True])
def test_torch_is_asked_only_if_a_driver_is_loaded(monkeypatch, tmp_path, has_gpu):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    monkeypatch.setattr(gpu, "_DEVICE_FILES", (str(tmp_path),))
    assert gpu.has_gpu() == has_gpu
    assert fork_server() is None if has_gpu else isinstance(fork_server(), ForkServer)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: 1 / 0)
    monkeypatch.setattr(gpu, "_DEVICE_FILES", (str(tmp_path / "none"),))
    assert not gpu.has_gpu()
