from dataclasses import replace

import pytest
import torch

from repa_pipe.errors import ConfigError
from repa_pipe.models.sit import SiT, SiTConfig
from repa_pipe.models.sit.entangled import EntangledSiT, make_sit

CONFIG = SiTConfig(
    input_size=8,
    patch_size=2,
    in_channels=4,
    hidden_size=48,
    depth=3,
    num_heads=3,
    encoder_depth=2,
    z_dims=(24,),
    projector_dim=32,
    cls_dim=24,
)


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = EntangledSiT(CONFIG)
    for weight in model.parameters():
        weight.data += 0.05 * torch.randn_like(weight)
    return model


@pytest.fixture
def arguments():
    return torch.randn(2, 4 * 8 * 8 + 24), torch.tensor([0.2, 0.9]), torch.tensor([1, 2])


def test_tensor_names_are_those_of_sit_and_those_published_by_reg():
    added = {
        "cls_projectors2.weight": [48, 24],
        "cls_projectors2.bias": [48],
        "wg_norm.weight": [48],
        "wg_norm.bias": [48],
        "final_layer.linear_cls.weight": [24, 48],
        "final_layer.linear_cls.bias": [24],
    }
    plain = {name: list(value.shape) for name, value in SiT(replace(CONFIG, cls_dim=None)).state_dict().items()}
    actual = {name: list(value.shape) for name, value in EntangledSiT(CONFIG).state_dict().items()}
    assert actual == plain | added | {"pos_embed": [1, 17, 48]}


def test_velocity_has_the_states_layout_and_the_class_token_is_projected_first(model, arguments):
    velocity, projected = model(*arguments)
    assert velocity.shape == (2, *model.state_shape) == (2, 280)
    assert [list(tokens.shape) for tokens in projected] == [[2, 17, 24]]
    latents, cls_token = model.unpack(velocity)
    assert latents.shape == (2, 4, 8, 8)
    assert torch.equal(model.pack(latents, cls_token), velocity)
    assert torch.equal(model.latents_of(velocity), latents)


@pytest.mark.parametrize("changed", [slice(0, 256), slice(256, 280)])
def test_latents_and_class_token_affect_each_other(model, arguments, changed):
    state, t, labels = arguments
    other = state.clone()
    other[:, changed] += 1
    before, after = model.unpack(model(state, t, labels)[0]), model.unpack(model(other, t, labels)[0])
    assert all((one - two).abs().max() > 1e-4 for one, two in zip(before, after, strict=True))


def test_fresh_model_predicts_zero(arguments):
    assert not EntangledSiT(CONFIG)(*arguments)[0].any()


def test_config_selects_the_model_class():
    assert type(make_sit(replace(CONFIG, cls_dim=None))) is SiT
    assert type(make_sit(SiTConfig.from_dict(CONFIG.to_dict()))) is EntangledSiT


def test_conv_projector_cannot_be_combined_with_a_class_token():
    with pytest.raises(ConfigError, match="projector is 'conv' and cls_dim is set"):
        replace(CONFIG, projector="conv")
