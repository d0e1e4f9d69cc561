"""Checkpoints of iREPA and REG, and those of other programs: names, shapes and outputs recorded from the programs.

`tests/reference/README.md` states what was recorded from where.
"""

import argparse
import json
import runpy
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from repa_pipe.config import SampleConfig
from repa_pipe.errors import CheckpointError, ConfigError, WeightsError
from repa_pipe.models.sit import SIT_PRESETS, EntangledSiT, SiT, SiTConfig, make_sit, sit_config
from repa_pipe.pipeline import sample
from repa_pipe.pipeline.artifacts.checkpoints import load_model
from repa_pipe.pipeline.artifacts.latents_stats import read_latents
from repa_pipe.pipeline.artifacts.published import Unrecorded, published_model

REFERENCE = Path(__file__).parents[2] / "reference"
fill = runpy.run_path(str(REFERENCE / "weights.py"))["fill"]


def recorded(name):
    values = np.load(REFERENCE / f"{name}.npz")
    return json.loads(str(values["config"])), {
        key: torch.from_numpy(values[key]) for key in values.files if key != "config"
    }


@pytest.fixture
def stats(tmp_path):
    """A statistics file as iREPA publishes it."""
    path = tmp_path / "latents-stats.pt"
    scale, bias = torch.tensor([1.5, 1.0, 0.5, 2.0]), torch.tensor([0.5, -1.0, 0.0, 2.0])
    torch.save({"latents_scale": scale.reshape(1, 4, 1, 1), "latents_bias": bias.reshape(1, 4, 1, 1)}, path)
    return str(path)


@pytest.fixture
def preset(monkeypatch):
    """The sizes of a recorded model, as if they had been published: their number of heads follows from the width."""

    def add(sizes):
        names = ("patch_size", "hidden_size", "depth", "num_heads", "encoder_depth")
        monkeypatch.setitem(SIT_PRESETS, "SiT-test/2", partial(SiTConfig, **{name: sizes[name] for name in names}))

    return add


def on_meta(name):
    """The tensors of a published checkpoint, without values, under the key that its file has."""
    listed = json.loads((REFERENCE / f"{name}_checkpoint.json").read_text())
    tensors = {key: torch.empty(shape, device="meta") for key, shape in listed["tensors"].items()}
    return {listed["wrapped_under"] or "ema": tensors}


def build_on_meta(name, **stated):
    with torch.device("meta"):
        return published_model(on_meta(name), True, Path(f"{name}.pt"), Unrecorded(**stated)).model.config


def test_the_published_checkpoint_of_reg_is_a_sit_with_a_class_token():
    config = build_on_meta("reg")
    assert (config.hidden_size, config.depth, config.cls_dim, config.z_dims) == (1152, 28, 768, (768,))
    assert (config.input_size, config.projector, config.num_classes) == (32, "mlp", 1000)


def test_the_published_checkpoint_of_irepa_is_a_sit_with_a_convolution(stats):
    config = build_on_meta("irepa_ldm", latents_stats=stats)
    assert (config.hidden_size, config.projector, config.projector_kernel_size) == (1152, "conv", 3)
    assert (config.input_size, config.z_dims, config.cls_dim) == (32, (768,), None)


def test_the_published_checkpoint_of_haste_is_one_of_repa():
    assert build_on_meta("haste").projector == "mlp"


def test_a_checkpoint_of_reg_gives_the_recorded_velocities(preset, tmp_path):
    setting, values = recorded("reg")
    sizes = setting["model"]
    preset(sizes)
    names = ("input_size", "in_channels", "hidden_size", "depth", "num_heads", "encoder_depth", "projector_dim")
    config = SiTConfig(
        patch_size=2, cls_dim=sizes["z_dims"][0], z_dims=tuple(sizes["z_dims"]), **{n: sizes[n] for n in names}
    )
    weights = fill(EntangledSiT(config).state_dict(), setting["fill_seed"], keep=("pos_embed",))
    torch.save({"ema": weights, "args": argparse.Namespace(path_type="linear", encoder_depth=2)}, tmp_path / "reg.pt")
    model = load_model(tmp_path / "reg.pt", ema=True).model
    assert model.config == config
    with torch.no_grad():
        state = model.pack(values["xt"], values["class_xt"])
        velocity, projected = model(state, values["t"], values["labels"])
    latents, class_token = model.unpack(velocity)
    torch.testing.assert_close(latents, values["eval_velocity"], atol=1e-4, rtol=0)
    torch.testing.assert_close(class_token, values["eval_class_velocity"], atol=1e-4, rtol=0)
    torch.testing.assert_close(projected[0], values["projected"], atol=1e-4, rtol=0)


def irepa_weights(setting, kernel):
    sizes = setting["model"]
    names = ("input_size", "in_channels", "hidden_size", "depth", "num_heads", "encoder_depth")
    config = SiTConfig(
        patch_size=2,
        z_dims=tuple(sizes["z_dims"]),
        projector="conv",
        projector_kernel_size=kernel,
        **{name: sizes[name] for name in names},
    )
    return fill(SiT(config).state_dict(), setting["fill_seed"], keep=("pos_embed",))


@pytest.mark.parametrize("kernel", [1, 3])
def test_a_checkpoint_of_irepa_gives_the_recorded_tokens(preset, stats, tmp_path, kernel):
    setting, values = recorded("irepa_ldm")
    preset(setting["model"])
    weights = irepa_weights(setting, kernel)
    args = argparse.Namespace(path_type="linear", encoder_depth=2, spnorm_method="zscore")
    torch.save({"ema": weights, "args": args, "steps": 400_000}, tmp_path / "irepa.pt")
    trained = load_model(tmp_path / "irepa.pt", True, Unrecorded(latents_stats=stats))
    assert trained.model.config.projector_kernel_size == kernel
    with torch.no_grad():
        velocity, projected = trained.model(values["xt"], values["t"], values["labels"])
    torch.testing.assert_close(velocity, values["velocity"], atol=1e-4, rtol=0)
    for number, tokens in enumerate(projected):
        torch.testing.assert_close(tokens, values[f"kernel{kernel}_projected_{number}"], atol=1e-4, rtol=0)


def test_a_linear_projector_of_irepa_is_a_convolution_with_kernel_1(preset, stats, tmp_path):
    setting, values = recorded("irepa_ldm")
    preset(setting["model"])
    weights = irepa_weights(setting, 1)
    kernels = {name for name, value in weights.items() if name.startswith("projectors") and value.ndim == 4}
    linear = {name: value[:, :, 0, 0] if name in kernels else value for name, value in weights.items()}
    torch.save({"ema": linear, "args": {"path_type": "linear", "encoder_depth": 2}}, tmp_path / "linear.pt")
    model = load_model(tmp_path / "linear.pt", True, Unrecorded(latents_stats=stats)).model
    with torch.no_grad():
        _, projected = model(values["xt"], values["t"], values["labels"])
    torch.testing.assert_close(projected[0], values["kernel1_projected_0"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("options", [{"cls_dim": 24}, {"projector": "conv"}], ids=["REG", "iREPA"])
def test_a_checkpoint_of_another_method_can_be_sampled(options, stats, tmp_path, run_cli):
    torch.manual_seed(0)
    model = make_sit(sit_config("SiT-T/2", input_size=8, in_channels=4, num_classes=5, z_dims=(24,), **options))
    torch.save({"ema": model.state_dict(), "args": argparse.Namespace(path_type="linear")}, tmp_path / "0400000.pt")
    words = ["--vae", "tiny-kl-f8", "--num-fid-samples", "2", "--num-steps", "2", "--mode", "sde", "--device", "cpu"]
    words += ["--cls-cfg-scale", "2.3"] if "cls_dim" in options else ["--latents-stats", stats]
    out = tmp_path / "out.npz"
    code, _, errors = run_cli("sample", tmp_path / "0400000.pt", *words, "--path-type=linear", "--out", out)
    assert code == 0, errors
    assert np.load(out)["arr_0"].shape == (2, 64, 64, 3)
    assert "warning" not in errors


def test_latents_of_irepa_are_centered_before_they_are_scaled(stats):
    latents = read_latents(stats, (4, 32, 32), "sd-vae-ft-mse")
    assert latents.vae == "sd-vae-ft-mse"
    assert latents.scale == (1.5, 1.0, 0.5, 2.0)
    assert latents.bias == (-0.75, 1.0, 0.0, -4.0)
    with pytest.raises(WeightsError, match="with 16 values each, found 4 for latents_scale"):
        read_latents(stats, (16, 32, 32), None)


def test_a_checkpoint_of_irepa_requires_the_statistics_of_its_latents():
    with pytest.raises(CheckpointError, match=r"irepa_ldm.pt was written by iREPA, .* --latents-stats \(sdvae-ft-mse"):
        build_on_meta("irepa_ldm")


def test_a_missing_statistics_file_is_found_before_sampling(tmp_path):
    (tmp_path / "a.pt").touch()
    with pytest.raises(WeightsError, match=r"none\.pt does not exist"):
        sample.run(SampleConfig(checkpoint=str(tmp_path / "a.pt"), latents_stats=str(tmp_path / "none.pt")))


def test_statistics_are_refused_for_a_checkpoint_that_records_its_latents():
    with pytest.raises(ConfigError, match=r"--latents-stats is given, but a\.pt records its own latents"):
        Unrecorded(latents_stats="stats.pt").require_none(Path("a.pt"), "linear")
