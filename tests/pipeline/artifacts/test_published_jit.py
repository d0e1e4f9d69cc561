"""Checkpoints of JiT, with and without iREPA's projectors: sizes, which average is read, and samples of pixels."""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from repa_pipe.config import SampleConfig
from repa_pipe.errors import CheckpointError, ConfigError
from repa_pipe.models.jit.config import JIT_PRESETS, JiTConfig
from repa_pipe.models.jit.model import JiT
from repa_pipe.pipeline import sample
from repa_pipe.pipeline.artifacts.checkpoints import load_model
from repa_pipe.pipeline.artifacts.published import Unrecorded, published_model

REFERENCE = Path(__file__).parents[2] / "reference"
sys.path.insert(0, str(Path(__file__).parents[2] / "agreement"))
from case import Case, filled  # noqa: E402

SIZES = {
    "hidden_size": 64,
    "depth": 5,
    "num_heads": 4,
    "bottleneck_dim": 12,
    "in_context_start": 2,
    "encoder_depth": 4,
}


@pytest.fixture
def case(monkeypatch):
    """The recorded figures, whose sizes are those of a preset in the test."""
    monkeypatch.setitem(JIT_PRESETS, "test", SIZES)
    return Case.read(REFERENCE / "irepa_jit.npz")


@pytest.fixture
def recorded(case):
    """The tensors of the recorded model under their published names."""
    net = case.config["net"]
    config = JiTConfig(
        input_size=net["img_size"],
        patch_size=net["patch_size"],
        num_classes=net["class_num"],
        in_context_len=net["in_context_len"],
        z_dims=tuple(net["z_dims"]),
        projector="conv",
        **SIZES,
    )
    tensors = {f"net.{name}": value for name, value in JiT(config).state_dict().items()}
    return filled(tensors, case.config["fill_seed"], case.config["fill_keep"])


def plus(tensors, number):
    return {name: value + number for name, value in tensors.items()}


@pytest.fixture
def published(recorded, tmp_path):
    """Write a checkpoint as JiT's trainer does, and return its path."""

    def write(weights=recorded, **args):
        path = tmp_path / "checkpoint-last.pth"
        averages = {"model_ema1": weights, "model_ema2": plus(weights, 2)}
        values = {"model": plus(weights, 1), "epoch": 3, "args": argparse.Namespace(**args)}
        torch.save(values | averages | {"optimizer": {"state": {}}}, path)
        return path

    return write


def test_the_published_checkpoint_is_a_jit_of_size_b():
    listed = json.loads((REFERENCE / "irepa_jit_checkpoint.json").read_text())
    with torch.device("meta"):
        tensors = {name: torch.empty(shape) for name, shape in listed["tensors"].items()}
        found = published_model({"model_ema1": tensors, "model_ema2": tensors}, True, Path("a.pth"), Unrecorded())
    expected = JiTConfig(input_size=256, z_dims=(768,), projector="conv", **JIT_PRESETS["JiT-B/16"])
    assert found.model.config == expected
    assert (found.latents.vae, found.latents.scale, found.latents.bias) == ("pixels", (2 / 255,) * 3, (-1.0,) * 3)
    assert (found.path_type, found.time_shift) == ("linear", 1.0)


def test_the_first_average_is_read_and_gives_the_recorded_images(case, published):
    model = load_model(published(encoder_depth=2), ema=True).model
    assert (model.config.encoder_depth, model.config.t_eps, model.config.noise_scale) == (2, 0.05, 1.0)
    with torch.no_grad():
        image, projected = model.predict(case["z"], 1 - case["t"], case["labels"])
    torch.testing.assert_close(image, case["eval_x_prediction"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(projected[0], case["before_context_projected"], rtol=1e-4, atol=1e-4)


def test_weights_that_are_not_averaged_are_read_with_no_ema(published, recorded):
    model = load_model(published(), ema=False).model
    torch.testing.assert_close(model.final_layer.linear.bias, recorded["net.final_layer.linear.bias"] + 1)


def test_recorded_options_of_the_process_are_those_of_the_model(published):
    config = load_model(published(t_eps=0.1, noise_scale=2.0), ema=True).model.config
    assert (config.t_eps, config.noise_scale, config.encoder_depth) == (0.1, 2.0, SIZES["encoder_depth"])
    with pytest.raises(CheckpointError, match=r"noise_scale"):
        load_model(published(noise_scale="two"), ema=True)


def test_a_model_of_512_pixels_had_twice_the_noise():
    config = JiTConfig(input_size=512, **JIT_PRESETS["JiT-B/16"] | {"patch_size": 32})
    with torch.device("meta"):
        tensors = {f"net.{name}": value for name, value in JiT(config).state_dict().items()}
        found = published_model({"model_ema1": tensors}, True, Path("a.pth"), Unrecorded()).model.config
    assert (found.noise_scale, found.patch_size, found.z_dims) == (2.0, 32, ())


def test_a_width_without_a_preset_and_statistics_of_latents_are_refused(published, recorded, monkeypatch):
    path = published()
    with pytest.raises(ConfigError, match=r"--latents-stats is given, but .*\.pth generates pixels: remove it"):
        load_model(path, True, Unrecorded(latents_stats="stats.pt"))
    monkeypatch.delitem(JIT_PRESETS, "test")
    with pytest.raises(CheckpointError, match=r"does not hold a JiT \(a width of 192, 768, 1024, 1280 is missing"):
        load_model(path, ema=True)


@pytest.fixture
def inputs_of(published, tmp_path, monkeypatch):
    """Sample images, and return the inputs x_t of every call of the model."""
    original, seen = JiT.forward, []

    def forward(self, x_t, t, labels, project=True):
        seen.append(x_t)
        return original(self, x_t, t, labels, project)

    monkeypatch.setattr(JiT, "forward", forward)

    def run(weights, args, **options):
        seen.clear()
        path, out = str(published(weights, **args)), str(tmp_path / f"{args}{options}.npz")
        sample.run(SampleConfig(checkpoint=path, num_fid_samples=2, device="cpu", out=out, **options))
        return list(seen)

    return run


def test_samples_start_from_noise_of_the_scale_of_the_model(inputs_of, recorded):
    """A model that predicts gray images for any input: after one of two steps, half of the noise is left."""
    weights = recorded | {name: torch.zeros_like(recorded[name]) for name in recorded if ".final_layer.linear." in name}
    start, middle = inputs_of(weights, {}, num_steps=2)
    scaled, _ = inputs_of(weights, {"noise_scale": 2.0}, num_steps=2)
    torch.testing.assert_close(scaled, 2 * start)
    torch.testing.assert_close(middle, start / 2)


def test_guidance_follows_the_time_of_each_evaluation(inputs_of, recorded):
    """Heun's step from 2/3 to 1/3 is guided at its start alone."""
    seen = inputs_of(recorded, {}, num_steps=3, heun=True, cfg_scale=2.0, guidance_low=0.5)
    assert [len(each) for each in seen] == [4, 4, 4, 2, 2]


def test_pixels_are_sampled_with_guidance(published, run_cli, tmp_path):
    def images(**options):
        out = tmp_path / "out.npz"
        out.unlink(missing_ok=True)
        words = ["--num-fid-samples", "2", "--num-steps", "3", "--heun", "--device", "cpu", "--out", out]
        words += [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value)]
        code, _, errors = run_cli("sample", path, *words)
        assert code == 0, errors
        return np.load(out)["arr_0"]

    path = published()
    plain = images(cfg_scale="1")
    assert plain.shape == (2, 24, 24, 3)
    assert plain.std() > 1
    assert (images(cfg_scale="3", guidance_low="0.1") != plain).any()
    code, _, errors = run_cli("sample", path, "--mode", "sde", "--device", "cpu")
    assert code != 0
    assert "a JiT requires --mode ode" in errors
