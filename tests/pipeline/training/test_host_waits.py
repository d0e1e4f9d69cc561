"""A training step never waits for the accelerator: the host stays ahead of it, so that it is never idle."""

import pytest
import torch

from repa_pipe.pipeline import train
from repa_pipe.pipeline.training.trainer import Trainer

READERS = [torch.Tensor.item, torch.Tensor.tolist, torch.Tensor.cpu, float, bool]


def test_the_host_reads_no_value_of_a_step_between_rows_of_metrics(config_of, host_waits):
    reads = []
    for steps in (1, 3):
        options = {"log_steps": 100, "checkpointing_steps": 100, "cls_coeff": 0.03, "report_to": "none"}
        with host_waits() as waits:
            train.run(config_of(exp_name=str(steps), max_train_steps=steps, **options))
        reads.append(sorted(waits.reads))
    assert reads[0] == reads[1]
    assert "tolist" in reads[0]  # of the row at the end


@pytest.mark.parametrize("read", READERS)
def test_reads_are_counted(host_waits, read):
    with host_waits() as waits:
        read(torch.ones(()) * 2)
    assert waits.reads


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("compiled", [False, True])
def test_no_step_synchronizes_a_gpu(config_of, monkeypatch, compiled):
    step, taken = Trainer.train_step, []

    def watched(self, batch):
        taken.append(self.step)
        torch.cuda.set_sync_debug_mode("error" if len(taken) > 1 else "default")  # the first step compiles
        try:
            return step(self, batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(Trainer, "train_step", watched)
    train.run(config_of(device="cuda", compile=compiled, mixed_precision="bf16", log_steps=100))
    assert len(taken) == 6
