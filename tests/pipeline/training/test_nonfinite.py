"""Runs that stop at a step whose loss or gradient is not finite."""

import json
from pathlib import Path

import pytest
import torch

from repa_pipe.errors import CheckpointError
from repa_pipe.pipeline import train
from repa_pipe.pipeline.artifacts.checkpoints import load_checkpoint
from repa_pipe.pipeline.artifacts.run_folder import RunFolder
from repa_pipe.pipeline.training.nonfinite import NonFiniteGuard
from repa_pipe.stores import AlignmentDataset, open_store


@pytest.fixture
def poisoned(config_of, monkeypatch):
    """A sample whose moments are NaN, and the first step that uses it."""
    with open_store(config_of().store) as store:
        dataset = AlignmentDataset(store, latents="tiny", encoders=["enc"], batch_size=8)
        sample = int(dataset.indices_of_step(2)[5])
    read = AlignmentDataset.read

    def reading(self, indices, *arguments):
        batch = read(self, indices, *arguments)
        batch.moments[torch.from_numpy(batch.indices == sample)] = float("nan")
        return batch

    monkeypatch.setattr(AlignmentDataset, "read", reading)
    return sample, 3


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_nonfinite_loss_stops_the_run_and_its_step_and_samples_are_recorded(config_of, poisoned, precision, caplog):
    sample, step = poisoned
    config = config_of(log_steps=5, checkpointing_steps=100, mixed_precision=precision)
    with pytest.raises(CheckpointError, match=rf"step {step} is not finite .*nan-{step:07d}.json"):
        train.run(config)
    run = RunFolder(Path(config.output_dir) / "run")
    written = json.loads((run.path / f"nan-{step:07d}.json").read_text())
    assert written["step"] == step
    assert len(written["indices"]) == 8
    assert sample in written["indices"]
    assert written["values"]["loss"] == "nan"
    assert run.checkpoints() == []
    assert "no checkpoint of step" not in caplog.text  # the error says so


def test_the_weights_before_the_bad_step_are_saved(config_of, poisoned, weights_of):
    before = load_checkpoint(Path(train.run(config_of(exp_name="before", max_train_steps=2)).checkpoint))
    config = config_of(log_steps=6)
    with pytest.raises(CheckpointError, match="not finite"):
        train.run(config)  # the checkpoint due at step 3 must not be written
    broken = load_checkpoint(Path(config.output_dir) / "run/checkpoints/nan-0000003.pt")
    assert broken["steps"] == 2
    assert all(torch.equal(value, broken["model"][name]) for name, value in before["model"].items())
    assert RunFolder(Path(config.output_dir) / "run").checkpoints() == []


@pytest.mark.parametrize(("scaled", "bad_step"), [(False, 7), (True, None)])
def test_overflowing_gradients_are_only_accepted_with_a_gradient_scaler(scaled, bad_step):
    guard = NonFiniteGuard(torch.device("cpu"), ("loss",), scaled)
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])
    guard.check(7, torch.tensor([1.0, float("inf")]), [optimizer])
    guard.check(8, torch.tensor([1.0, float("inf")]), [optimizer])
    bad = guard.bad_step()
    assert (bad.step if bad else None) == bad_step
