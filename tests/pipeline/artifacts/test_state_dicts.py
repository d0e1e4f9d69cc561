"""Weights are found under any usual wrapper; what is missing or ambiguous is one line."""

import argparse
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from repa_pipe.errors import CheckpointError, ConfigError
from repa_pipe.models.sit import SiT, sit_config
from repa_pipe.pipeline.artifacts.checkpoints import load_model
from repa_pipe.pipeline.artifacts.published import Unrecorded
from repa_pipe.pipeline.artifacts.state_dicts import find_initial_weights, find_weights

CONFIG = sit_config("SiT-T/2", input_size=8, in_channels=4, num_classes=5, z_dims=(24,), projector_dim=32)
WEIGHTS = {"x_embedder.proj.weight": torch.ones(1), "blocks.0.attn.qkv.weight": torch.ones(1)}
OTHERS = {name: value + 1 for name, value in WEIGHTS.items()}


def prefixed(weights, prefix):
    return {prefix + name: value for name, value in weights.items()}


WRAPPED = {  # averaged weights, as trainers save them
    "REPA": {"ema": WEIGHTS, "model": OTHERS, "opt": {"state": {0: {"exp_avg": torch.ones(1)}}}, "args": None},
    "alone": WEIGHTS,
    "DDP": {"ema": prefixed(WEIGHTS, "module.")},
    "torch.compile": {"ema": prefixed(WEIGHTS, "_orig_mod.")},
    "DDP of torch.compile": {"ema": prefixed(WEIGHTS, "module._orig_mod.")},
    "compiled blocks": {"ema": {name.replace("blocks.0", "blocks.0._orig_mod"): v for name, v in WEIGHTS.items()}},
    "state_dict": {"state_dict": WEIGHTS},
    "ema_model": {"ema_model": WEIGHTS, "model": OTHERS},
    "ema_state_dict": {"ema_state_dict": WEIGHTS, "model_state_dict": OTHERS},
    "model_ema": {"model_ema": WEIGHTS, "model": OTHERS, "scheduler": {"base_lrs": [1.0]}},
    "AveragedModel": prefixed(WEIGHTS, "module.") | {"n_averaged": torch.tensor(3)},
    "Lightning": {"state_dict": prefixed(WEIGHTS, "ema_model.") | prefixed(OTHERS, "model."), "global_step": 7},
    "Lightning with net": {"state_dict": prefixed(WEIGHTS, "net_ema.module.") | prefixed(OTHERS, "net.")},
    "Lightning's callback": {
        "state_dict": prefixed(OTHERS, "model."),
        "callbacks": {"EMA": {"ema_weights": WEIGHTS}},
    },
}


@pytest.mark.parametrize("content", WRAPPED.values(), ids=WRAPPED)
def test_averaged_weights_are_found_under_any_usual_key(content):
    assert find_weights(content, ema=True) == WEIGHTS


@pytest.mark.parametrize("name", ["REPA", "ema_model", "ema_state_dict", "Lightning", "Lightning with net"])
def test_weights_that_are_not_averaged_are_found_too(name):
    assert find_weights(WRAPPED[name], ema=False) == OTHERS


prefixes = st.lists(st.sampled_from(["module", "_orig_mod", "state_dict", "net", "model", "diffusion"]), max_size=3)


@settings(deadline=None)
@given(prefixes, st.sampled_from(["ema", "ema_model", "model_ema", "ema_state_dict"]), prefixes)
def test_any_nesting_of_an_average_is_found(outer, key, inner):
    content = {key: prefixed(WEIGHTS, "".join(f"{part}." for part in inner))}
    for part in outer:
        content = {part: content}
    assert find_weights(content, ema=True) == WEIGHTS


@pytest.mark.parametrize(
    ("content", "ema", "message"),
    [
        ({"model": WEIGHTS}, True, r"holds no EMA weights \(found 'model'\): add --no-ema"),
        ({"state_dict": prefixed(WEIGHTS, "net.")}, True, r"holds no EMA weights \(found 'state_dict.net'\)"),
        ({"ema": WEIGHTS, "model": None}, False, "holds EMA weights only: remove --no-ema"),
        (WEIGHTS, False, "holds EMA weights only: remove --no-ema"),
        ({"ema": WEIGHTS, "ema_slow": WEIGHTS}, True, r"holds several models \('ema', 'ema_slow'\)"),
        ({"vae": {"decoder.weight": torch.ones(1)}}, True, "does not hold a SiT .* found 'vae'"),
        ({}, True, "does not hold a SiT .* found nothing"),
    ],
)
def test_what_cannot_be_chosen_is_one_line(content, ema, message):
    with pytest.raises(CheckpointError, match=message):
        find_weights(content, ema)


def test_a_run_starts_from_other_weights_with_a_warning(caplog):
    assert find_initial_weights({"model": OTHERS}, "a.pt") == OTHERS
    assert "a.pt holds no EMA weights" in caplog.text
    with pytest.raises(CheckpointError, match=r"^a\.pt: .*does not hold a SiT"):
        find_initial_weights({}, "a.pt")


@pytest.fixture
def weights():
    torch.manual_seed(0)
    return SiT(CONFIG).state_dict()


def test_a_safetensors_file_is_a_checkpoint(weights, tmp_path):
    save_file(prefixed(weights, "ema."), tmp_path / "a.safetensors")
    model = load_model(tmp_path / "a.safetensors", True, Unrecorded("linear")).model
    assert torch.equal(model.blocks[0].attn.qkv.weight, weights["blocks.0.attn.qkv.weight"])


@pytest.mark.parametrize("args", [None, {}, argparse.Namespace(), "lost"])
def test_a_checkpoint_may_lack_its_options(weights, tmp_path, args, caplog):
    torch.save({"ema": weights, "args": args, "steps": None}, tmp_path / "a.pt")
    trained = load_model(tmp_path / "a.pt", ema=True)
    assert (trained.config.path_type, trained.step) == ("linear", 0)
    assert "a.pt does not record its path; it is taken for linear" in caplog.text
    assert "--path-type cosine" in caplog.text


def test_the_path_of_weights_alone_can_be_stated(weights, tmp_path, caplog):
    torch.save(weights, tmp_path / "a.pt")
    assert load_model(tmp_path / "a.pt", True, Unrecorded("cosine")).config.path_type == "cosine"
    assert not caplog.records


def test_a_stated_path_that_differs_from_the_recorded_one_is_refused(weights, tmp_path):
    torch.save({"ema": weights, "args": {"path_type": "linear"}}, tmp_path / "a.pt")
    with pytest.raises(ConfigError, match=r"--path-type is 'cosine', but .*a\.pt was trained on the linear path"):
        load_model(tmp_path / "a.pt", True, Unrecorded("cosine"))
    assert load_model(tmp_path / "a.pt", True, Unrecorded("linear")).config.path_type == "linear"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"path_type": "Linear"}, "written by the original SiT code .* time runs from noise to data"),
        ({"path_type": "round"}, "records path_type 'round'; expected linear or cosine"),
        ({"path_type": "linear", "encoder_depth": "four"}, "encoder_depth is 'four'"),
    ],
)
def test_options_of_other_programs_are_refused(weights, tmp_path, args, message):
    torch.save({"ema": weights, "args": argparse.Namespace(**args)}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=message):
        load_model(tmp_path / "a.pt", ema=True)


def test_a_model_with_a_variance_is_refused_with_the_reason(weights, tmp_path):
    weights |= {f"final_layer.linear.{name}": torch.cat([weights[f"final_layer.linear.{name}"]] * 2)
                for name in ("weight", "bias")}  # fmt: skip
    torch.save(weights, tmp_path / "DiT.pt")
    with pytest.raises(CheckpointError, match=r"DiT\.pt: .*learn_sigma.* original SiT and DiT code"):
        load_model(tmp_path / "DiT.pt", ema=True)


def test_a_model_without_a_null_label_is_recognized_by_its_options(weights, tmp_path):
    torch.save({"ema": weights, "args": {"path_type": "linear", "num_classes": 6}}, tmp_path / "a.pt")
    config = load_model(tmp_path / "a.pt", ema=True).model.config
    assert (config.num_classes, config.class_dropout_prob) == (6, 0.0)


def test_a_plain_sit_alone_is_loaded_with_a_warning_about_the_original_code(weights, tmp_path, caplog):
    torch.save({name: value for name, value in weights.items() if "projectors" not in name}, tmp_path / "a.pt")
    assert load_model(tmp_path / "a.pt", True, Unrecorded("linear")).model.config.z_dims == ()
    assert "has neither training options nor projectors" in caplog.text


def test_a_file_in_the_old_format_of_torch_is_read(weights, tmp_path):
    torch.save(
        {"ema": weights, "args": {"path_type": "linear"}}, tmp_path / "a.pt", _use_new_zipfile_serialization=False
    )
    assert load_model(tmp_path / "a.pt", ema=True).config.path_type == "linear"


def test_projectors_named_by_irepa_and_by_version_0_1_are_read(tmp_path):
    model = SiT(replace(CONFIG, projector="conv"))
    older = {name.replace("projection_layer", "conv"): value for name, value in model.state_dict().items()}
    plain = SiT(CONFIG).state_dict()
    irepa = {name.replace("projectors.0.", "projectors.0.projection_layer."): value for name, value in plain.items()}
    assert older.keys() != model.state_dict().keys()
    for weights, kind in ((older, "conv"), (irepa, "mlp")):
        torch.save({"ema": weights, "args": {"path_type": "linear"}}, tmp_path / "a.pt")
        stats = tmp_path / "stats.pt"
        torch.save({"latents_scale": torch.ones(4), "latents_bias": torch.zeros(4)}, stats)
        assert load_model(tmp_path / "a.pt", True, Unrecorded(latents_stats=str(stats))).model.config.projector == kind
