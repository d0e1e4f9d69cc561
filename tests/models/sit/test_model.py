import json
import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from repa_pipe.errors import CheckpointError, ConfigError
from repa_pipe.models.layers import attention
from repa_pipe.models.sit import SIT_PRESETS, SiT, SiTConfig, drop_labels, load_sit_state, sit_config

REFERENCE = Path(__file__).parents[2] / "reference"
fill = runpy.run_path(str(REFERENCE / "weights.py"))["fill"]

SMALL = SiTConfig(
    input_size=16,
    patch_size=2,
    in_channels=4,
    hidden_size=192,
    depth=4,
    num_heads=3,
    encoder_depth=2,
    z_dims=(64,),
    projector_dim=256,
)
RECORDED = {
    "sit_linear_p2": (SMALL, 1),
    "sit_cosine_p4_qknorm_two_projectors": (
        replace(SMALL, patch_size=4, encoder_depth=3, z_dims=(48, 96), qk_norm=True),
        2,
    ),
}


def filled(config: SiTConfig, seed: int = 1) -> SiT:
    model = SiT(config)
    model.load_state_dict(fill(model.state_dict(), seed, keep=("pos_embed",)))
    return model


def load_recorded(name: str) -> dict[str, torch.Tensor]:
    return {key: torch.from_numpy(value) for key, value in np.load(REFERENCE / f"{name}.npz").items()}


@pytest.fixture(scope="module")
def small() -> SiT:
    return filled(SMALL)


@pytest.fixture(scope="module")
def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    recorded = load_recorded("sit_linear_p2")
    return recorded["xt"], recorded["t"], recorded["y"]


@pytest.mark.parametrize("name", RECORDED)
def test_velocity_and_projected_tokens_match_the_published_code(name):
    recorded = load_recorded(name)
    velocity, projected = filled(*RECORDED[name])(recorded["xt"], recorded["t"], recorded["y"])
    torch.testing.assert_close(velocity, recorded["v"], atol=1e-4, rtol=0)
    assert len(projected) == len(RECORDED[name][0].z_dims)
    for number, tokens in enumerate(projected):
        torch.testing.assert_close(tokens, recorded[f"projected_{number}"], atol=1e-4, rtol=0)


def test_tensor_names_and_shapes_are_those_of_published_checkpoints():
    config = SiTConfig(
        input_size=8,
        patch_size=2,
        in_channels=4,
        hidden_size=12,
        depth=1,
        num_heads=2,
        num_classes=10,
        encoder_depth=1,
        z_dims=(5, 7),
        projector_dim=9,
        qk_norm=True,
    )
    published = {
        "pos_embed": [1, 16, 12],
        "x_embedder.proj.weight": [12, 4, 2, 2],
        "x_embedder.proj.bias": [12],
        "t_embedder.mlp.0.weight": [12, 256],
        "t_embedder.mlp.0.bias": [12],
        "t_embedder.mlp.2.weight": [12, 12],
        "t_embedder.mlp.2.bias": [12],
        "y_embedder.embedding_table.weight": [11, 12],
        "blocks.0.attn.qkv.weight": [36, 12],
        "blocks.0.attn.qkv.bias": [36],
        "blocks.0.attn.q_norm.weight": [6],
        "blocks.0.attn.q_norm.bias": [6],
        "blocks.0.attn.k_norm.weight": [6],
        "blocks.0.attn.k_norm.bias": [6],
        "blocks.0.attn.proj.weight": [12, 12],
        "blocks.0.attn.proj.bias": [12],
        "blocks.0.mlp.fc1.weight": [48, 12],
        "blocks.0.mlp.fc1.bias": [48],
        "blocks.0.mlp.fc2.weight": [12, 48],
        "blocks.0.mlp.fc2.bias": [12],
        "blocks.0.adaLN_modulation.1.weight": [72, 12],
        "blocks.0.adaLN_modulation.1.bias": [72],
        "projectors.0.0.weight": [9, 12],
        "projectors.0.0.bias": [9],
        "projectors.0.2.weight": [9, 9],
        "projectors.0.2.bias": [9],
        "projectors.0.4.weight": [5, 9],
        "projectors.0.4.bias": [5],
        "projectors.1.0.weight": [9, 12],
        "projectors.1.0.bias": [9],
        "projectors.1.2.weight": [9, 9],
        "projectors.1.2.bias": [9],
        "projectors.1.4.weight": [7, 9],
        "projectors.1.4.bias": [7],
        "final_layer.linear.weight": [16, 12],
        "final_layer.linear.bias": [16],
        "final_layer.adaLN_modulation.1.weight": [24, 12],
        "final_layer.adaLN_modulation.1.bias": [24],
    }
    assert {name: list(value.shape) for name, value in SiT(config).state_dict().items()} == published


@pytest.mark.parametrize(("family", "millions"), [("S", 33), ("B", 130), ("L", 458), ("XL", 675)])
def test_parameter_counts_match_the_papers(family, millions):
    """The papers' counts are for 256 pixels, without projectors."""
    with torch.device("meta"):
        model = SiT(sit_config(f"SiT-{family}/2", input_size=32, in_channels=4, z_dims=()))
    assert sum(weight.numel() for weight in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.51)


def test_position_embedding_encodes_column_then_row(small):
    """Token 3 * 8 + 5 of the 8x8 grid is at row 3, column 5."""
    embedding = small.pos_embed[0, 3 * 8 + 5].double()
    frequencies = 10_000.0 ** (-torch.arange(48) / 48)
    expected = torch.cat([f(where * frequencies) for where in (5, 3) for f in (torch.sin, torch.cos)])
    torch.testing.assert_close(embedding, expected.double(), atol=1e-6, rtol=0)
    assert not small.pos_embed.requires_grad


def test_fresh_model_predicts_zero_and_its_blocks_are_the_identity(inputs):
    model = SiT(SMALL)
    velocity, projected = model(*inputs)
    assert not velocity.any()
    assert all(tokens.any() for tokens in projected)
    first, last = model.hidden_states(*inputs, blocks=[1, 4])
    torch.testing.assert_close(first, last)


def test_initialization_is_the_published_one():
    torch.manual_seed(0)
    model = SiT(SMALL)
    xavier = {
        model.blocks[0].attn.qkv.weight: (192, 3 * 192),
        model.blocks[3].mlp.fc2.weight: (4 * 192, 192),
        model.projectors[0][0].weight: (192, 256),
        model.x_embedder.proj.weight: (4 * 2 * 2, 192),
    }
    for weight, (fan_in, fan_out) in xavier.items():
        bound = (6 / (fan_in + fan_out)) ** 0.5
        assert 0.99 * bound < weight.abs().max() <= bound
    for weight in (
        model.t_embedder.mlp[0].weight,
        model.t_embedder.mlp[2].weight,
        model.y_embedder.embedding_table.weight,
    ):
        assert float(weight.detach().std()) == pytest.approx(0.02, rel=0.02)
    biases = {name: value for name, value in model.named_parameters() if name.endswith("bias")}
    assert not any(value.any() for value in biases.values())
    assert len(biases) == 1 + 2 + 4 * 5 + 3 + 2


def test_training_mode_draws_no_random_numbers(small, inputs):
    state = torch.random.get_rng_state()
    trained, _ = small.train()(*inputs)
    evaluated, _ = small.eval()(*inputs)
    torch.testing.assert_close(trained, evaluated)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_dropped_labels_become_the_null_label():
    labels, mask = torch.tensor([3, 999, 0, 7]), torch.tensor([False, True, True, False])
    assert drop_labels(labels, mask, 1000).tolist() == [3, 1000, 1000, 7]


def test_null_label_is_the_last_row_of_the_embedding_table(small, inputs):
    x_t, t, labels = inputs
    assert SMALL.null_label == len(small.y_embedder.embedding_table.weight) - 1
    dropped, _ = small(x_t, t, torch.full_like(labels, SMALL.null_label))
    kept, _ = small(x_t, t, labels)
    assert not torch.equal(dropped, kept)


def test_null_label_needs_class_dropout():
    config = replace(SMALL, class_dropout_prob=0.0)
    assert len(SiT(config).y_embedder.embedding_table.weight) == 1000
    with pytest.raises(ConfigError, match="class_dropout_prob is 0"):
        _ = config.null_label


def test_projection_can_be_skipped(small, inputs):
    with_projectors, projected = small(*inputs)
    without, nothing = small(*inputs, project=False)
    torch.testing.assert_close(with_projectors, without)
    assert len(projected) == 1
    assert nothing == []


def test_projectors_read_the_tokens_after_encoder_depth(small, inputs):
    _, (projected,) = small(*inputs)
    (state,) = small.hidden_states(*inputs, blocks=[SMALL.encoder_depth])
    torch.testing.assert_close(small.projectors[0](state), projected)


def test_conv_projector_depends_on_a_token_and_its_neighbors():
    model = SiT(replace(SMALL, projector="conv"))
    tokens = torch.zeros(1, 64, 192)
    tokens[0, 3 * 8 + 4] = 1  # row 3, column 4 of the grid
    changed = (model.projectors[0](tokens) - model.projectors[0](torch.zeros(1, 64, 192))).abs().sum(-1).reshape(8, 8)
    assert changed.nonzero().tolist() == [[row, column] for row in (2, 3, 4) for column in (3, 4, 5)]


def test_hidden_states_are_in_the_models_order_and_need_valid_blocks(small, inputs):
    two, four = small.hidden_states(*inputs, blocks=[4, 2])
    assert two.shape == (3, 64, 192)
    torch.testing.assert_close(two, small.hidden_states(*inputs, blocks=[2])[0])
    torch.testing.assert_close(four, small.hidden_states(*inputs, blocks=[4])[0])
    for blocks in ([0], [5], []):
        with pytest.raises(ConfigError, match="1 to 4"):
            small.hidden_states(*inputs, blocks=blocks)


def test_blocks_after_the_last_requested_one_are_not_run(small, inputs):
    ran = []
    hooks = [
        block.register_forward_hook(lambda *_, number=number: ran.append(number))
        for number, block in enumerate(small.blocks, start=1)
    ]
    small.hidden_states(*inputs, blocks=[2])
    for hook in hooks:
        hook.remove()
    assert ran == [1, 2]


def gradients(model: SiT, inputs) -> dict[str, torch.Tensor]:
    model.zero_grad()
    velocity, projected = model(*inputs)
    (velocity.square().mean() + projected[0].mean()).backward()
    return {name: weight.grad for name, weight in model.named_parameters() if weight.requires_grad}


def test_checkpointed_blocks_give_the_same_gradients_with_less_memory(inputs):
    kept = []

    def count(tensor):
        kept.append(tensor.numel())
        return tensor

    model = filled(SMALL)
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        plain = gradients(model, inputs)
    plain_size, kept[:] = sum(kept), []
    model.checkpoint_blocks = True
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        model(*inputs)
    assert sum(kept) < plain_size / 2
    checkpointed = gradients(model, inputs)
    assert plain.keys() == checkpointed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient)


def test_bfloat16_autocast_stays_close_to_float32(small, inputs):
    with torch.no_grad():
        exact, _ = small(*inputs)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded, (projected,) = small(*inputs)
    assert projected.dtype == torch.bfloat16
    assert (rounded.float() - exact).square().mean().sqrt() < 0.02 * exact.square().mean().sqrt()


def test_bfloat16_weights_run_without_autocast(inputs):
    x_t, t, labels = inputs
    velocity, _ = filled(SMALL).bfloat16()(x_t.bfloat16(), t, labels)
    assert velocity.dtype == torch.bfloat16
    assert velocity.isfinite().all()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_model_compiles_to_one_graph(inputs, checkpointing):
    model = filled(SMALL)
    model.checkpoint_blocks = checkpointing
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*inputs)[0], model(*inputs)[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(compiled(*inputs, project=False)[0], model(*inputs)[0], atol=1e-5, rtol=0)


@pytest.mark.slow
def test_compiled_model_matches_the_recorded_velocity(inputs):
    compiled = torch.compile(filled(SMALL), fullgraph=True)
    recorded = load_recorded("sit_linear_p2")
    torch.testing.assert_close(compiled(*inputs)[0], recorded["v"], atol=1e-4, rtol=0)


def test_older_tensor_names_of_published_checkpoints_load(small, inputs):
    def older_name(name: str) -> str:
        part, _, rest = name.partition(".")
        if part == "blocks" and int(rest.split(".")[0]) >= SMALL.encoder_depth:
            number, _, rest = rest.partition(".")
            name = f"decoder_blocks.{int(number) - SMALL.encoder_depth}.{rest}"
        return f"module.{name}"

    state = {older_name(name): value for name, value in small.state_dict().items()}
    assert "module.decoder_blocks.1.mlp.fc1.weight" in state
    model = SiT(SMALL)
    load_sit_state(model, state)
    torch.testing.assert_close(model(*inputs)[0], small(*inputs)[0])


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"depth": 5}, r"blocks\.4\.attn\.qkv\.weight is missing.*and 6 more"),
        ({"depth": 3}, r"blocks\.3\.attn\.qkv\.weight is unexpected"),
        ({"z_dims": (32,)}, r"projectors\.0\.4\.weight has another shape \(expected \[32, 256\], found \[64, 256\]\)"),
        ({"input_size": 32}, r"pos_embed has another shape \(expected \[1, 256, 192\], found \[1, 64, 192\]\)"),
        ({"qk_norm": True}, r"q_norm\.weight is missing"),
    ],
)
def test_weights_of_another_model_are_rejected(small, change, complaint):
    with pytest.raises(CheckpointError, match=complaint):
        load_sit_state(SiT(replace(SMALL, **change)), small.state_dict())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("input_size", 15),
        ("patch_size", 0),
        ("in_channels", -4),
        ("hidden_size", 193),
        ("hidden_size", 2.5),
        ("num_classes", True),
        ("num_heads", 7),
        ("mlp_ratio", 0),
        ("mlp_ratio", "4"),
        ("num_classes", 0),
        ("class_dropout_prob", 1.5),
        ("class_dropout_prob", float("nan")),
        ("encoder_depth", 0),
        ("encoder_depth", 5),
        ("z_dims", [768]),
        ("z_dims", (768, 0)),
        ("projector_dim", None),
        ("qk_norm", "yes"),
        ("projector", "linear"),
    ],
)
def test_invalid_fields_are_reported_by_name(field, value):
    with pytest.raises(ConfigError, match=field):
        replace(SMALL, **{field: value})


def test_hidden_size_must_be_a_multiple_of_4_for_the_position_embedding():
    with pytest.raises(ConfigError, match="multiple of 4"):
        replace(SMALL, hidden_size=6, num_heads=3)


def test_config_round_trips_through_json():
    config = replace(SMALL, z_dims=(48, 96), qk_norm=True, class_dropout_prob=0.2)
    assert SiTConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_unknown_and_missing_config_fields_are_rejected():
    values = SMALL.to_dict()
    with pytest.raises(ConfigError, match="unknown key 'learn_sigma'"):
        SiTConfig.from_dict(values | {"learn_sigma": True})
    del values["depth"]
    with pytest.raises(ConfigError, match="required key 'depth' is missing"):
        SiTConfig.from_dict(values)


def test_presets_have_the_published_sizes():
    config = SIT_PRESETS["SiT-XL/2"](input_size=32, in_channels=4)
    assert (config.hidden_size, config.depth, config.num_heads, config.patch_size) == (1152, 28, 16, 2)
    assert (config.mlp_ratio, config.num_classes, config.projector_dim, config.z_dims) == (4.0, 1000, 2048, (768,))
    assert {name.rpartition("/")[0] for name in SIT_PRESETS} == {"SiT-T", "SiT-S", "SiT-B", "SiT-L", "SiT-XL"}
    assert len(SIT_PRESETS) == 20  # with patch sizes 1, 2, 4 and 8


@pytest.mark.parametrize(("name", "depth"), [("SiT-XL/2", 8), ("SiT-L/4", 8), ("SiT-B/2", 4), ("SiT-S/8", 4)])
def test_encoder_depth_defaults_to_the_published_one(name, depth):
    assert sit_config(name, input_size=32, in_channels=4).encoder_depth == depth
    assert sit_config(name, input_size=32, in_channels=4, encoder_depth=6).encoder_depth == 6


def test_preset_accepts_the_sizes_of_the_data():
    config = sit_config("SiT-T/4", input_size=16, in_channels=16, num_classes=10, z_dims=(384, 768), qk_norm=True)
    assert (config.patch_size, config.hidden_size, config.num_classes) == (4, 192, 10)
    velocity, projected = SiT(config)(torch.zeros(2, 16, 16, 16), torch.zeros(2), torch.tensor([9, 10]))
    assert velocity.shape == (2, 16, 16, 16)
    assert [tokens.shape for tokens in projected] == [(2, 16, 384), (2, 16, 768)]


def test_unknown_preset_error_lists_the_known_presets():
    with pytest.raises(ConfigError, match=r"'SiT-H/2'; expected one of .*SiT-XL/2"):
        sit_config("SiT-H/2", input_size=32, in_channels=4)


@pytest.mark.parametrize("qk_norm", [False, True])
def test_attention_logits_of_a_block_are_those_that_its_output_was_computed_with(qk_norm, inputs):
    model = filled(replace(SMALL, qk_norm=qk_norm))
    seen = {}
    model.blocks[2].attn.register_forward_hook(lambda _, given, out: seen.update(given=given[0], out=out))
    with torch.no_grad():
        model(*inputs)
        _, _, tapped = model(*inputs, taps=("attention_2", "block_1"))
        attn, tokens = model.blocks[2].attn, seen["given"]
        value = attn.qkv(tokens).unflatten(-1, (3, 3, 64)).permute(2, 0, 3, 1, 4)[2]
        mixed = tapped["attention_2"].softmax(-1) @ value
        torch.testing.assert_close(attn.proj(mixed.transpose(1, 2).flatten(2)), seen["out"], atol=1e-5, rtol=1e-5)
    assert set(tapped) == {"attention_2", "block_1"} <= set(model.taps)
    assert tapped["attention_2"].shape == (len(tokens), 3, 64, 64)


@pytest.mark.parametrize("recomputed", [False, True])
def test_asking_for_attention_logits_changes_no_bit_of_outputs_and_gradients(recomputed, inputs):
    model = filled(SMALL)
    model.checkpoint_blocks = recomputed
    model(*inputs)[0].sum().backward()
    expected, gradient = model(*inputs), model.blocks[0].attn.qkv.weight.grad.clone()
    velocity, projected, tapped = model(*inputs, taps=tuple(f"attention_{number}" for number in range(SMALL.depth)))
    assert torch.equal(velocity, expected[0])
    assert torch.equal(projected[0], expected[1][0])
    model.zero_grad()
    (velocity.sum() + 0 * sum(logits.sum() for logits in tapped.values())).backward()
    assert torch.equal(model.blocks[0].attn.qkv.weight.grad, gradient)
    model.zero_grad()
    _, _, tapped = model(*inputs, taps=("attention_1",))
    tapped["attention_1"].square().sum().backward()
    assert model.blocks[0].attn.qkv.weight.grad.abs().sum() > 0
    assert model.blocks[2].attn.qkv.weight.grad is None


def test_attention_logits_are_not_computed_unless_asked_for(inputs, monkeypatch, small):
    calls = []
    original = attention.attention_logits
    monkeypatch.setattr(attention, "attention_logits", lambda *args: calls.append(1) or original(*args))
    small(*inputs, taps=("block_1",))
    assert not calls
    small(*inputs, taps=("attention_0", "attention_3"))
    assert len(calls) == 2
