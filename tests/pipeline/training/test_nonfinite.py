import json
from pathlib import Path

import pytest
import torch

from repa_pipe.errors import CheckpointError
from repa_pipe.pipeline import train
from repa_pipe.pipeline.artifacts.checkpoints import list_checkpoints, load_checkpoint
from repa_pipe.pipeline.training.nonfinite import NonFiniteGuard
from repa_pipe.stores import AlignmentDataset, open_store


@pytest.fixture
def poisoned(config_of, monkeypatch):
    """A sample that turns its batch into NaN, and the step that takes it first."""
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


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_loss_that_is_not_finite_stops_the_run_and_names_its_step_and_samples(config_of, poisoned, precision):
    sample, step = poisoned
    config = config_of(log_steps=5, checkpointing_steps=100, mixed_precision=precision)
    with pytest.raises(CheckpointError, match=rf"step {step} is not finite .*nan-{step:07d}.json"):
        train.run(config)
    run_dir = Path(config.output_dir) / "run"
    written = json.loads((run_dir / f"nan-{step:07d}.json").read_text())
    assert written["step"] == step
    assert len(written["indices"]) == 8
    assert sample in written["indices"]
    assert written["values"]["loss"] == "nan"
    assert list_checkpoints(run_dir) == []


def test_the_checkpoint_beside_holds_the_weights_before_the_bad_step(config_of, poisoned, weights_of):
    before = load_checkpoint(Path(train.run(config_of(exp_name="before", max_train_steps=2)).checkpoint))
    config = config_of(log_steps=6)
    with pytest.raises(CheckpointError, match="not finite"):
        train.run(config)  # a checkpoint is due at step 3, and must not be written
    broken = load_checkpoint(Path(config.output_dir) / "run/checkpoints/nan-0000003.pt")
    assert broken["steps"] == 2
    assert all(torch.equal(value, broken["model"][name]) for name, value in before["model"].items())
    assert list_checkpoints(Path(config.output_dir) / "run") == []


def test_overflowing_gradients_are_a_scalers_daily_work():
    for scaled, found in ((False, 7), (True, None)):
        health = NonFiniteGuard(torch.device("cpu"), ("loss",), scaled)
        optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])
        health.check(7, torch.tensor([1.0, float("inf")]), optimizer)
        health.check(8, torch.tensor([1.0, float("inf")]), optimizer)
        bad = health.bad_step()
        assert (bad.step if bad else None) == found
