"""SR-DiT: routed tokens, dropped paths, value residuals, and what is refused."""

import pytest
import torch

from repa_pipe.converter import structure
from repa_pipe.errors import CheckpointError, ConfigError
from repa_pipe.models.architectures import preset_config
from repa_pipe.models.flops import forward_flops
from repa_pipe.models.infer_config import infer_config
from repa_pipe.models.srdit.config import SRDiTConfig
from repa_pipe.models.srdit.model import SRDiT, grid_positions, kept_tokens

SIZES = {"input_size": 4, "in_channels": 6, "num_classes": 5, "hidden_size": 16, "depth": 6, "num_heads": 2}
CONFIG = SRDiTConfig(cls_dim=7, z_dims=(9,), projector_dim=8, **SIZES)
TOKENS = 17


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = SRDiT(CONFIG)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    return model


@pytest.fixture
def inputs(model):
    return torch.randn(3, *model.state_shape), torch.rand(3), torch.tensor([0, 4, 5])


def gradients_of(model, inputs, **draws):
    model.zero_grad()
    velocity, projected = model(*inputs, **draws)
    (velocity.square().mean() + projected[0].square().mean()).backward()
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


@pytest.mark.parametrize(("ratio", "count"), [(0.75, 4), (0.0, 17), (1.0, 1), (0.5, 8)])
def test_the_tokens_with_the_smallest_draws_are_kept(ratio, count):
    uniform = torch.rand(3, TOKENS, generator=torch.Generator().manual_seed(0))
    kept = kept_tokens(uniform, ratio)
    assert torch.equal(uniform.take_along_dim(kept, dim=1), uniform.sort(dim=1).values[:, :count])


def test_the_class_token_has_the_position_of_the_first_patch_which_is_not_rotated(model):
    assert grid_positions(torch.tensor([[0, 1, 5]])).tolist() == [[0, 0, 4]]
    heads = torch.randn(1, 2, 3, 8)
    rotated = model.feat_rope.at(torch.tensor([[0, 0, 4]]))(heads)
    assert torch.equal(rotated[:, :, :2], heads[:, :, :2])
    assert not torch.allclose(rotated[:, :, 2], heads[:, :, 2])


def test_all_tokens_are_the_same_as_no_routing(model, inputs):
    shuffled = kept_tokens(torch.rand(3, TOKENS), 0.0)
    torch.testing.assert_close(model(*inputs, kept=shuffled)[0], model(*inputs)[0])


def test_middle_blocks_see_kept_tokens_alone(model, inputs):
    seen = []
    for block in model.blocks:
        block.register_forward_hook(lambda _, given, out: seen.append(given[0].shape[1]))
    kept = kept_tokens(torch.rand(3, TOKENS), 0.75)
    velocity, projected = model(*inputs, kept=kept)
    assert seen == [17, 17, 4, 4, 17, 17]
    assert projected[0].shape == (3, 17, 9)
    flipped = model(*inputs, kept=kept.flip(1))[0]
    torch.testing.assert_close(flipped, velocity)
    assert not torch.allclose(model(*inputs)[0], velocity)


def test_a_dropped_path_has_gradients_of_zero_and_only_for_its_samples(model, inputs):
    gradients = gradients_of(model, inputs, path_dropped=torch.tensor(True))
    middle = {name: value for name, value in gradients.items() if name.startswith(("blocks.2.", "blocks.3."))}
    assert len(middle) == 2 * 13
    assert not any(value.any() for value in middle.values())
    assert gradients["mask_token"].any()
    dropped = model(*inputs, path_dropped=torch.tensor(True))[0]
    mixed = model(*inputs, path_dropped=torch.tensor([False, True, False]))[0]
    torch.testing.assert_close(mixed[1], dropped[1])
    torch.testing.assert_close(mixed[::2], model(*inputs)[0][::2])


def test_the_unconditional_model_of_guidance_is_the_dropped_path_without_its_computation(model, inputs):
    runs = []
    model.blocks[2].register_forward_hook(lambda *_: runs.append(1))
    with torch.no_grad():
        without = model(*inputs, uncond=True)[0]
        assert not runs
        torch.testing.assert_close(without, model(*inputs, path_dropped=torch.tensor(True))[0])


def test_values_of_the_first_block_reach_every_later_block(model, inputs):
    names = {f"blocks.{number}.attn.v1_lambda" for number in range(1, 6)}
    assert names == {name for name in model.state_dict() if name.endswith("v1_lambda")}
    gradients = gradients_of(model, inputs, kept=kept_tokens(torch.rand(3, TOKENS), 0.75))
    assert all(gradients[name].abs() > 0 for name in names)


def test_recomputing_blocks_changes_no_gradient_of_routed_tokens(model, inputs):
    draws = {"kept": kept_tokens(torch.rand(3, TOKENS), 0.75), "path_dropped": torch.tensor([True, False, False])}
    expected = gradients_of(model, inputs, **draws)
    model.checkpoint_blocks = True
    found = gradients_of(model, inputs, **draws)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0)


def test_state_and_guidance_scales_hold_latents_and_class_token(model, inputs):
    latents, cls_token = model.unpack(inputs[0])
    assert (latents.shape, cls_token.shape) == ((3, 6, 4, 4), (3, 7))
    assert torch.equal(model.pack(latents, cls_token), inputs[0])
    scales = model.guidance_scales(2.5, 0.0)
    assert scales.tolist() == [[2.5] * 96 + [1.0] * 7]


def test_weights_without_projectors_and_norms_are_recognized():
    config = SRDiTConfig(**SIZES | {"hidden_size": 192, "num_heads": 3, "mlp_ratio": 2.0}, cls_dim=7, qk_norm=False)
    assert config.encoder_depth is None
    tensors = SRDiT(config).state_dict()
    assert infer_config(tensors) == config
    del tensors["wg_norm.weight"], tensors["cls_projectors2.weight"]
    with pytest.raises(CheckpointError, match=r"does not hold a SR-DiT \('cls_projectors2.weight' is missing"):
        infer_config(tensors)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"depth": 4}, "depth is 4; expected more than the 4 blocks before and after the routing"),
        ({"hidden_size": 18}, "hidden_size 18 with num_heads 2"),
        ({"cls_dim": 0}, "cls_dim: expected `?int`? >= 1"),
        ({"z_dims": [0]}, "z_dims.*expected `?int`? >= 1"),
    ],
)
def test_sizes_that_fit_no_model_are_refused(changed, message):
    with pytest.raises(ConfigError, match=message):
        structure(CONFIG.to_dict() | changed, SRDiTConfig, "config")


def test_flops_are_those_of_routed_tokens():
    config = preset_config("SRDiT-B/1", input_size=16, in_channels=32)
    tokens, kept, products = 257, 64, 2 * 768**2
    blocks = 12 * products * (4 * tokens + 8 * kept)
    attention = 4 * 768 * (4 * tokens**2 + 8 * kept**2)
    modulation, fusion = 6 * 12 * products, 2 * products * tokens
    expected = blocks + attention + modulation + fusion
    assert expected < forward_flops(config) < 1.02 * expected
