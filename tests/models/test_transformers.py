"""Models besides SiT: names and shapes of the published checkpoints, sizes, and what is refused."""

import json
from pathlib import Path

import pytest
import torch

from repa_pipe.converter import structure
from repa_pipe.errors import ConfigError
from repa_pipe.models.dit_dh.config import DIT_DH_PRESETS, DiTDHConfig
from repa_pipe.models.dit_dh.model import DiTDH
from repa_pipe.models.jit.config import JIT_PRESETS, JiTConfig
from repa_pipe.models.jit.model import JiT
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
    "irepa_jit": lambda: JiT(JiTConfig(input_size=256, z_dims=(768,), projector="conv", **JIT_PRESETS["JiT-B/16"])),
    "raev2_ditig": lambda: RAEv2(RAEv2Config(input_size=16, in_channels=1024, **RAEV2_PRESETS["RAEv2-XL"])),
    "srdit": lambda: SRDiT(
        SRDiTConfig(input_size=16, in_channels=32, cls_dim=768, z_dims=(768,), **SRDIT_PRESETS["SRDiT-B/1"])
    ),
}
SMALL_PAIR = {"input_size": 4, "in_channels": 6, "num_classes": 5, "hidden_size": (16, 24), "num_heads": (2, 2)}


def small_jit(**changed):
    sizes = {"input_size": 4, "patch_size": 1, "in_channels": 6, "num_classes": 5, "hidden_size": 16, "depth": 3}
    sizes |= {"num_heads": 2, "bottleneck_dim": 4, "in_context_len": 2, "in_context_start": 1, "encoder_depth": 2}
    return JiTConfig(**sizes | changed)


SMALL = {
    "lightningdit": lambda: LightningDiT(
        LightningDiTConfig(input_size=4, in_channels=6, num_classes=5, hidden_size=16, depth=2, num_heads=2)
    ),
    "dit_dh": lambda: DiTDH(DiTDHConfig(depth=(2, 1), **SMALL_PAIR)),
    "raev2": lambda: RAEv2(RAEv2Config(depth=(2, 1), base_model_depth=1, **SMALL_PAIR)),
    "jit": lambda: JiT(small_jit()),
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
    tensors = {key.removeprefix("net."): shape for key, shape in published["tensors"].items()}
    assert {key: list(value.shape) for key, value in model.state_dict().items()} == tensors


@pytest.mark.parametrize("name", SMALL)
def test_new_models_predict_zeros_and_learn(name):
    model = SMALL[name]()
    x_t, t, labels = inputs_of(model)
    velocity = model(x_t, t, labels)[0]
    prediction = model.predict(x_t, t, labels)[0] if name in {"raev2", "jit"} else velocity
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
        (JiTConfig, {"hidden_size": 18}, "hidden_size 18 with num_heads 2"),
        (JiTConfig, {"in_context_len": -1}, "in_context_len is -1"),
        (JiTConfig, {"in_context_start": 3}, "in_context_start is 3; expected 0 or more, and fewer than the 2 blocks"),
        (JiTConfig, {"encoder_depth": 0}, "encoder_depth: expected `?int`? >= 1"),
        (JiTConfig, {"encoder_depth": 3}, "encoder_depth is 3, but the model has only 2 blocks"),
        (JiTConfig, {"projector_kernel_size": 2}, "projector_kernel_size is 2; expected an odd number"),
        (JiTConfig, {"projector": "other"}, "projector"),
    ],
)
def test_sizes_that_fit_no_model_are_refused(kind, changed, message):
    single = kind is not RAEv2Config and kind is not DiTDHConfig
    sizes = {"input_size": 4, "in_channels": 6, "hidden_size": 16 if single else [16, 24]}
    sizes |= {"depth": 2, "num_heads": 2} if single else {"depth": [2, 1], "num_heads": [2, 2]}
    sizes |= {"base_model_depth": 1} if kind is RAEv2Config else {}
    sizes |= {"patch_size": 1, "in_context_start": 1, "encoder_depth": 2} if kind is JiTConfig else {}
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


@pytest.mark.parametrize("options", [{"projector": "mlp", "projector_dim": 7}, {"projector": "conv"}])
@pytest.mark.parametrize("depth", [1, 2])
def test_projectors_of_jit_read_the_patches_alone(options, depth):
    """At depth 2, tokens of the label are in the sequence; they must not change the number or place of tokens."""
    torch.manual_seed(0)
    model = JiT(small_jit(z_dims=(8, 5), encoder_depth=depth, **options))
    inputs = torch.randn(3, 6, 4, 4), torch.rand(3), torch.tensor([0, 4, 5])
    read = []
    for projector in model.projectors:
        projector.register_forward_hook(lambda _, given, result: read.append(given[0]))
    velocity, projected = model(*inputs)
    assert [list(each.shape) for each in projected] == [[3, 16, 8], [3, 16, 5]]
    embedded = model.x_embedder(inputs[0]) + model.pos_embed  # new blocks are the identity
    for tokens in read:
        torch.testing.assert_close(tokens, embedded)
    without, nothing = model(*inputs, project=False)
    assert nothing == []
    torch.testing.assert_close(without, velocity)


def test_tokens_of_the_label_reach_the_image_of_jit_from_their_block_on():
    torch.manual_seed(0)
    image, labels = torch.randn(1, 6, 4, 4), torch.tensor([1])
    changes = []
    for start in (1, 2):
        model, read = JiT(small_jit(in_context_start=start)), []
        for weight in model.parameters():
            torch.nn.init.normal_(weight, std=0.2)
        for block in model.blocks:
            block.register_forward_hook(lambda _, given, result, read=read: read.append(given[0].shape[1]))
        with torch.no_grad():
            before = model(image, torch.tensor([0.5]), labels)[0]
            model.in_context_posemb += 1
            changes.append((model(image, torch.tensor([0.5]), labels)[0] - before).abs().max())
        assert read == 2 * ([16] * start + [18] * (3 - start))
    assert min(changes) > 1e-3


def test_the_velocity_of_an_image_that_jit_predicts_is_bounded_near_the_data():
    model = JiT(small_jit(t_eps=0.1, noise_scale=2.0))
    x_t, t, labels = torch.randn(3, 6, 4, 4), torch.tensor([0.0, 0.01, 0.5]), torch.tensor([0, 4, 5])
    divisors, data = torch.tensor([0.1, 0.1, 0.5]).reshape(3, 1, 1, 1), torch.randn_like(x_t)
    torch.testing.assert_close(model(x_t, t, labels)[0], x_t / divisors)  # new models predict zeros
    torch.testing.assert_close(model.target(x_t, torch.zeros_like(x_t), data, t), (x_t - data) / divisors)
    assert model.noise_scale == 2
