"""Grids of images that are generated during training."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from repa_pipe.errors import WeightsError
from repa_pipe.pipeline import train
from repa_pipe.pipeline.sampling.sampler import Sampler


def test_grids_are_generated_without_affecting_the_training(config_of, weights_of, assert_same_weights):
    plain = train.run(config_of(exp_name="plain", max_train_steps=4))
    with_grids = train.run(config_of(max_train_steps=4, sampling_steps=2, learning_rate=1e-4))
    assert_same_weights(weights_of(plain), weights_of(with_grids))
    grids = sorted((Path(with_grids.run) / "samples").glob("*.png"))
    assert [path.name for path in grids] == ["step-0000002.png", "step-0000004.png"]
    assert np.asarray(Image.open(grids[0])).shape == (256, 256, 3)


@pytest.mark.slow
def test_a_resumed_run_generates_the_same_grids(config_of):
    options = {"sampling_steps": 2, "ema_decay": 0.0, "learning_rate": 1e-2}
    whole = train.run(config_of(exp_name="whole", max_train_steps=4, **options))
    train.run(config_of(max_train_steps=2, **options))
    parts = train.run(config_of(max_train_steps=4, **options))
    names = ("step-0000002.png", "step-0000004.png")
    first, *others = [
        np.asarray(Image.open(Path(run) / "samples" / name)) for run in (whole.run, parts.run) for name in names
    ]
    assert not np.array_equal(first, others[0])  # training has changed the images
    assert np.array_equal(first, others[1])
    assert np.array_equal(others[0], others[2])


@pytest.mark.slow
def test_a_grid_that_is_not_finite_is_reported_and_training_continues(config_of, monkeypatch, caplog):
    original = Sampler.latents
    monkeypatch.setattr(Sampler, "latents", lambda self, indices: original(self, indices) * torch.nan)
    result = train.run(config_of(max_train_steps=4, sampling_steps=2))
    assert "step 2: no grid of images was written: 16 of 16 latents are NaN or infinite" in caplog.text
    assert result.step == 4
    assert not list((Path(result.run) / "samples").glob("*.png"))


def test_an_unavailable_vae_is_an_error_before_training(config_of, monkeypatch):
    def load_vae(name, device):
        raise WeightsError(f"no {name}")

    monkeypatch.setattr("repa_pipe.pipeline.sampling.decoder.load_vae", load_vae)
    with pytest.raises(WeightsError, match="no tiny-kl-f8"):
        train.run(config_of(sampling_steps=1000))
    train.run(config_of())
