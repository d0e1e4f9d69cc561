"""The precision of a run: chosen by the hardware, recorded, kept on other hardware."""

import contextlib
import dataclasses
import logging
from pathlib import Path

import pytest
import torch

from repa_pipe.errors import ConfigError
from repa_pipe.pipeline import train
from repa_pipe.pipeline.ablation.job import Job
from repa_pipe.pipeline.artifacts.checkpoints import load_checkpoint
from repa_pipe.pipeline.artifacts.run_folder import RunFolder
from repa_pipe.pipeline.runtime import cpu
from repa_pipe.pipeline.runtime.device import choose_precision

LAPTOP, SERVER = "avx2", "avx2 avx512f avx512_bf16"


@pytest.fixture
def on(monkeypatch, tmp_path):
    """Pretend that the CPU has these flags."""
    monkeypatch.delenv("ATEN_CPU_CAPABILITY", raising=False)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)

    def pretend(flags):
        (tmp_path / "cpuinfo").write_text(f"flags : {flags}\n")
        monkeypatch.setattr(cpu, "CPUINFO", tmp_path / "cpuinfo")

    return pretend


@pytest.mark.parametrize(
    ("flags", "precision", "has"),
    [(LAPTOP, "fp32", "has no"), (SERVER, "bf16", "has")],
)
def test_the_cpu_determines_the_precision_which_is_recorded(config_of, on, caplog, *, flags, precision, has):
    on(flags)
    caplog.set_level(logging.INFO)
    result = train.run(config_of(mixed_precision=None, max_train_steps=1))
    assert f"precision: {precision}, because this CPU {has} AVX512_BF16 or AMX" in caplog.text
    assert RunFolder(Path(result.run)).read_config().mixed_precision == precision
    assert load_checkpoint(Path(result.checkpoint))["config"]["mixed_precision"] == precision


def test_a_run_keeps_its_precision_on_another_machine(config_of, on, caplog):
    on(SERVER)
    caplog.set_level(logging.INFO)
    config = config_of(mixed_precision=None, max_train_steps=1)
    run = RunFolder(Path(train.run(config).run))
    on(LAPTOP)
    caplog.clear()
    train.run(config)
    assert "nothing to do" in caplog.text
    train.run(config_of(mixed_precision=None, max_train_steps=2))
    assert run.read_config().mixed_precision == "bf16"
    assert "precision: bf16, as recorded by this run" in caplog.text
    assert "bf16 is emulated" in caplog.text
    with pytest.raises(ConfigError, match=r"--mixed-precision: recorded 'bf16', requested 'fp32'"):
        train.run(config_of(mixed_precision="fp32", max_train_steps=2))
    requested = dataclasses.replace(run.read_config(), mixed_precision=None)
    job = Job(requested, None, None, every_checkpoint=False, processes=1, gpus=0)
    assert job.is_finished("train")


def test_a_requested_precision_is_used_on_any_machine(config_of, on, caplog):
    on(LAPTOP)
    result = train.run(config_of(mixed_precision="bf16", max_train_steps=1))
    assert RunFolder(Path(result.run)).read_config().mixed_precision == "bf16"
    assert "bf16 is emulated" in caplog.text


@pytest.mark.parametrize("has_bf16", [False, True])
def test_a_gpu_with_emulated_bf16_trains_in_fp32(monkeypatch, has_bf16):
    def is_supported(including_emulation=True):
        return has_bf16 or including_emulation

    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_supported)
    expected = ("bf16", "Tesla T4 has bf16") if has_bf16 else ("fp32", "Tesla T4 has no bf16")
    assert choose_precision(torch.device("cuda")) == expected
