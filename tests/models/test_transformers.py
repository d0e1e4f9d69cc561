"""LightningDiT, DiT-DH, RAEv2 and SR-DiT: names and shapes of the published checkpoints, sizes, and what is refused."""

import json
from pathlib import Path

import pytest
import torch

from repa_pipe.converter import structure
from repa_pipe.errors import ConfigError
from repa_pipe.models.dit_dh.config import DIT_DH_PRESETS, DiTDHConfig
from repa_pipe.models.dit_dh.model import DiTDH
from repa_pipe.models.lightningdit.config import LIGHTNINGDIT_PRESETS, LightningDiTConfig
from repa_pipe.models.lightningdit.model import LightningDiT
from repa_pipe.models.raev2.config import RAEV2_PRESETS, RAEv2Config
from repa_pipe.models.raev2.model import RAEv2
from repa_pipe.models.srdit.config import SRDIT_PRESETS, SRDiTConfig
from repa_pipe.models.srdit.model import SRDiT

REFERENCE = Path(__file__).parents[1] / "reference"
PUBLISHED = {
    "lightningdit": lambda: LightningDiT(
        LightningDiTConfig(input_size=16, in_channels=32, **LIGHTNINGDIT_PRESETS["LightningDiT-XL/1"])
    ),
    "rae_ditdh": lambda: DiTDH(DiTDHConfig(input_size=16, in_channels=768, **DIT_DH_PRESETS["DiT-DH-XL"])),
    "raev2_ditig": lambda: RAEv2(RAEv2Config(input_size=16, in_channels=1024, **RAEV2_PRESETS["RAEv2-XL"])),
    "srdit": lambda: SRDiT(
        SRDiTConfig(input_size=16, in_channels=32, cls_dim=768, z_dims=(768,), **SRDIT_PRESETS["SRDiT-B/1"])
    ),
}
SMALL_PAIR = {"input_size": 4, "in_channels": 6, "num_classes": 5, "hidden_size": (16, 24), "num_heads": (2, 2)}
SMALL = {
    "lightningdit": lambda: LightningDiT(
        LightningDiTConfig(input_size=4, in_channels=6, num_classes=5, hidden_size=16, depth=2, num_heads=2)
    ),
    "dit_dh": lambda: DiTDH(DiTDHConfig(depth=(2, 1), **SMALL_PAIR)),
    "raev2": lambda: RAEv2(RAEv2Config(depth=(2, 1), base_model_depth=1, **SMALL_PAIR)),
    "srdit": lambda: SRDiT(
        SRDiTConfig(
            input_size=4, in_channels=6, num_classes=5, hidden_size=16, depth=5, num_heads=2, cls_dim=7, z_dims=(9,)
        )
    ),
}


def inputs_of(model):
    return torch.randn(3, *model.state_shape), torch.rand(3), torch.tensor([0, 4, 5])


@pytest.mark.parametrize("name", PUBLISHED)
def test_names_and_shapes_are_those_of_the_published_checkpoint(name):
    published = json.loads((REFERENCE / f"{name}_checkpoint.json").read_text())
    with torch.device("meta"):
        model = PUBLISHED[name]()
    assert {key: list(value.shape) for key, value in model.state_dict().items()} == published["tensors"]


@pytest.mark.parametrize("name", SMALL)
def test_new_models_predict_zeros_and_learn(name):
    model = SMALL[name]()
    x_t, t, labels = inputs_of(model)
    velocity = model(x_t, t, labels)[0]
    prediction = model.predict(x_t, t, labels).data if name == "raev2" else velocity
    assert prediction.shape == x_t.shape
    assert not prediction.any()  # the last layer is initialized to zeros, as published
    (velocity - torch.randn_like(x_t)).square().mean().backward()
    assert model.final_layer.linear.weight.grad.abs().max() > 0


@pytest.mark.parametrize("name", SMALL)
def test_half_precision_stays_close(name):
    torch.manual_seed(0)
    model = SMALL[name]()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    inputs = inputs_of(model)
    with torch.no_grad():
        exact = model(*inputs)[0]
        with torch.autocast("cpu", torch.bfloat16):
            rounded = model(*inputs)[0]
    assert (rounded.float() - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize(
    ("kind", "changed", "message"),
    [
        (LightningDiTConfig, {"hidden_size": 18}, "hidden_size 18 with num_heads 2"),
        (LightningDiTConfig, {"patch_size": 3}, "input_size 4 is not a multiple of patch_size 3"),
        (LightningDiTConfig, {"depth": 0}, "depth: expected `?int`? >= 1, found 0"),
        (LightningDiTConfig, {"class_dropout_prob": 1.5}, "class_dropout_prob: expected `?float`? <= 1"),
        (DiTDHConfig, {"depth": 2}, "depth: expected array, found int"),
        (RAEv2Config, {"base_model_depth": 3}, "base_model_depth is 3, but the encoder has only 2 blocks"),
        (RAEv2Config, {"repa_layer_depth": 4}, "repa_layer_depth is 4, but the encoder has only 2 blocks"),
    ],
)
def test_sizes_that_fit_no_model_are_refused(kind, changed, message):
    single = kind is LightningDiTConfig
    sizes = {"input_size": 4, "in_channels": 6, "hidden_size": 16 if single else [16, 24]}
    sizes |= {"depth": 2, "num_heads": 2} if single else {"depth": [2, 1], "num_heads": [2, 2]}
    sizes |= {"base_model_depth": 1} if kind is RAEv2Config else {}
    structure(sizes, kind, "config")
    with pytest.raises(ConfigError, match=message):
        structure(sizes | changed, kind, "config")


@pytest.mark.parametrize("name", SMALL)
def test_recomputing_blocks_changes_no_gradient(name):
    torch.manual_seed(0)
    model = SMALL[name]()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    inputs = inputs_of(model)
    gradients = []
    for recompute in (False, True):
        model.checkpoint_blocks = recompute
        model.zero_grad()
        model(*inputs)[0].square().mean().backward()
        gradients.append({key: each.grad.clone() for key, each in model.named_parameters() if each.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for key, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], gradient, rtol=0, atol=0)


def test_the_velocity_of_predicted_data_is_bounded_near_the_data():
    torch.manual_seed(0)
    model = SMALL["raev2"]()
    x_t, t, labels = torch.randn(3, 6, 4, 4), torch.tensor([0.0, 0.01, 0.5]), torch.tensor([0, 4, 5])
    velocity, projected, tapped = model(x_t, t, labels, taps=("base_velocity",))
    divisors = torch.tensor([0.05, 0.05, 0.5]).reshape(3, 1, 1, 1)
    torch.testing.assert_close(velocity, x_t / divisors)  # new models predict zeros
    torch.testing.assert_close(tapped["base_velocity"], velocity)
    assert projected == []
    data = torch.randn_like(x_t)
    torch.testing.assert_close(model.target(x_t, torch.zeros_like(x_t), data, t), (x_t - data) / divisors)
