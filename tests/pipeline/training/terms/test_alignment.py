"""The alignment term: its weight over steps, its targets, and what is read of the store."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from repa_pipe.config import TrainConfig
from repa_pipe.diffusion.loss import spatial_zscore
from repa_pipe.errors import ConfigError
from repa_pipe.pipeline import train
from repa_pipe.pipeline.artifacts.checkpoints import load_checkpoint, load_model
from repa_pipe.pipeline.artifacts.metrics_log import read_metrics
from repa_pipe.pipeline.artifacts.run_folder import RunFolder
from repa_pipe.pipeline.runtime.distributed import DistributedContext
from repa_pipe.pipeline.training.setup import open_dataset, resolve
from repa_pipe.pipeline.training.terms.alignment import AlignmentTerm
from repa_pipe.stores import Batch, open_store
from repa_pipe.stores.codecs import make_codec


def test_no_tokens_are_read_after_alignment_has_ended(config_of, weights_of, assert_same_weights):
    short = train.run(config_of(alignment_steps=2, max_train_steps=2))
    for file in Path(config_of().store).glob("features/enc/tokens/c/*/*/*"):
        file.unlink()
    longer = train.run(config_of(alignment_steps=2, log_steps=1))
    rows = read_metrics(RunFolder(Path(longer.run)))
    assert [row["alignment_loss"] != 0 for row in rows] == [True, *[False] * 4]
    before, after = weights_of(short), weights_of(longer)
    assert_same_weights(
        *({name: value for name, value in w.items() if "model.projectors" in name} for w in (before, after))
    )
    assert not torch.equal(before["model.blocks.0.attn.qkv.weight"], after["model.blocks.0.attn.qkv.weight"])


@pytest.mark.parametrize(
    "stopped_after", [pytest.param(2, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow), 4]
)
def test_a_run_resumes_bit_identically_around_the_end_of_alignment(
    config_of, stopped_after, weights_of, assert_same_weights
):
    options = {"alignment_steps": 3, "proj_coeff_decay_steps": 5}
    whole = train.run(config_of(exp_name="whole", max_train_steps=5, **options))
    train.run(config_of(max_train_steps=stopped_after, **options))
    resumed = train.run(config_of(max_train_steps=5, **options))
    assert_same_weights(weights_of(whole), weights_of(resumed))
    one, other = (load_checkpoint(Path(result.checkpoint))["opt"]["state"] for result in (whole, resumed))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[number][name], other[number][name]) for number in one for name in one[number])


def test_the_coefficient_decays_linearly_to_zero(config_of):
    result = train.run(config_of(proj_coeff_decay_steps=4, log_steps=1))
    for number, row in enumerate(read_metrics(RunFolder(Path(result.run)))):
        coefficient = 0.5 * max(0, 1 - number / 4)
        assert row["loss"] == pytest.approx(row["denoising_loss"] + coefficient * row["alignment_loss"])
        assert (row["alignment_loss"] == 0) == (number >= 4)


def test_nt_xent_can_replace_the_cosine(config_of):
    row = read_metrics(RunFolder(Path(train.run(config_of(alignment_loss="nt_xent", max_train_steps=1)).run)))[0]
    assert 1 < row["alignment_loss"] < np.inf  # outside of the range of a cosine


@pytest.mark.parametrize(("codec_name", "close"), [("float16", 1e-2), ("int8", 0.1), ("int4", 0.5)])
def test_targets_are_normalized_over_the_image_with_every_codec(codec_name, close):
    tokens = torch.randn(3, 16, 32) * torch.linspace(0.5, 8, 16)[None, :, None] + 2
    codec = make_codec(codec_name, 16, 32)
    stored = {name: torch.from_numpy(array) for name, array in codec.encode(tokens).items()}
    attributes = {"codec": codec.attributes, "num_tokens": 16, "width": 32}
    store = SimpleNamespace(group=lambda name: SimpleNamespace(attributes=attributes))
    config = TrainConfig(store="s", enc_type=("enc",), spatial_norm=0.6)
    batch = Batch(np.arange(3), torch.zeros(3), torch.zeros(3), [stored["tokens"]], [stored.get("token_scale")], [])
    (target,) = AlignmentTerm(config, store).prepare(batch, 0, DistributedContext(0, 1))["targets"]
    assert (target - spatial_zscore(tokens, 0.6)).square().mean().sqrt() < close


def test_token_scales_are_only_read_for_spatial_normalization(config_of):
    with open_store(config_of().store) as store:
        for gamma, wanted in ((None, False), (1.0, True)):
            dataset = open_dataset(resolve(config_of(spatial_norm=gamma), store), store, DistributedContext(0, 1))
            assert ("token_scale" in dataset._wanted) == wanted


def test_irepa_trains_and_resumes(config_of, weights_of, assert_same_weights):
    options = {"projector": "conv", "spatial_norm": 1.0}
    whole = weights_of(train.run(config_of(exp_name="whole", max_train_steps=4, **options)))
    assert whole["model.projectors.0.projection_layer.weight"].shape == (24, 192, 3, 3)
    train.run(config_of(max_train_steps=2, **options))
    assert_same_weights(whole, weights_of(train.run(config_of(max_train_steps=4, **options))))


@pytest.mark.slow
def test_a_run_of_version_0_1_with_a_convolution_resumes(config_of, weights_of, assert_same_weights):
    whole = weights_of(train.run(config_of(exp_name="whole", max_train_steps=4, projector="conv")))
    half = Path(train.run(config_of(max_train_steps=2, projector="conv")).checkpoint)
    values = load_checkpoint(half)
    for part in ("model", "ema"):
        values[part] = {name.replace("projection_layer", "conv"): value for name, value in values[part].items()}
    del values["sit"]["projector_kernel_size"], values["config"]["projector_kernel_size"]
    half.unlink()
    torch.save(values, half)
    assert "projectors.0.conv.weight" in load_checkpoint(half)["model"]
    assert_same_weights(whole, weights_of(train.run(config_of(max_train_steps=4, projector="conv"))))
    assert load_model(half, ema=True).model.config.projector_kernel_size == 3


def test_the_kernel_of_the_convolution_can_be_chosen(config_of, weights_of):
    options = {"projector": "conv", "projector_kernel_size": 1, "spatial_norm": 0.6}
    weights = weights_of(train.run(config_of(max_train_steps=2, **options)))
    assert weights["ema.projectors.0.projection_layer.weight"].shape == (24, 192, 1, 1)
    for wrong in ({"projector": "mlp"}, {"projector_kernel_size": 2}):
        with pytest.raises(ConfigError, match="--projector-kernel-size is"):
            config_of(**options | wrong)


def test_a_gamma_outside_of_0_to_1_is_refused():
    with pytest.raises(ConfigError, match=r"--spatial-norm is 2: expected a fraction"):
        TrainConfig(store="s", spatial_norm=2)
