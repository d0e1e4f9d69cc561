"""Exported checkpoints: the same images and the same initial weights as the checkpoint, in other files."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, DiTTransformer2DModel
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from repa_pipe.config import EvaluateConfig, ExportConfig, SampleConfig, TrainConfig
from repa_pipe.errors import CheckpointError, ConfigError, DamagedCheckpointError
from repa_pipe.models.architectures import key_of, make_model, model_names, preset_config, read_model_config
from repa_pipe.models.sit.diffusers_weights import TIME_SCALE, _embedded, _fit_times
from repa_pipe.models.vae import load_vae
from repa_pipe.models.weight_files import read_safetensors_metadata
from repa_pipe.pipeline import export, sample, train
from repa_pipe.pipeline.artifacts.checkpoints import (
    StoreMetadata,
    load_checkpoint,
    load_initial_weights,
    load_model,
    save_checkpoint,
)
from repa_pipe.pipeline.artifacts.exported import exported_of, read_exported, write_exported
from repa_pipe.pipeline.artifacts.images import save_grid
from repa_pipe.pipeline.artifacts.metric_files import MetricRecord, write_metrics_file
from repa_pipe.pipeline.artifacts.metrics_log import MetricsLog
from repa_pipe.pipeline.artifacts.run_folder import RunFolder
from repa_pipe.pipeline.artifacts.sample_files import SampleFiles, SampleResult
from repa_pipe.pipeline.runtime.seeds import STREAMS_VERSION, RandomStreams
from repa_pipe.pipeline.sampling.sampler import Sampler

STORE = StoreMetadata("tiny-kl-f8", (2.0,) * 4, (0.5,) * 4, ("cat", "dog", "owl"), "0" * 64, {"latents/x": {"a": 1}})


def noisy(value):
    return value + 0.05 * torch.randn(value.shape)


def values_of(name="SiT-T/2", store=STORE, **changes):
    """Return the contents of a checkpoint of step 2 with random weights."""
    size, channels = (64, 3) if name.startswith("JiT") else (8, 4)
    config = dataclasses.replace(preset_config(name, input_size=size, in_channels=channels), num_classes=3)
    if name == "SiT-T/2":
        config = dataclasses.replace(config, depth=2, encoder_depth=2)
    torch.manual_seed(0)
    model, ema = (
        {key: noisy(value) if key != "pos_embed" else value for key, value in make_model(config).state_dict().items()}
        for _ in range(2)
    )
    settings = TrainConfig(store="/data/mystore", output_dir="/home/me/runs", model=name, init_from="/home/me/a.pt")
    values = {"model": model, "ema": ema, "opt": {}, "scaler": {}, "steps": 2, "random_streams": 1}
    return values | {"config": settings.as_json(), key_of(config): config.to_dict(), "store": store.as_json()} | changes


@pytest.fixture
def run_folder(tmp_path):
    """A run folder with a checkpoint alone."""
    run = RunFolder(tmp_path / "run")
    run.write_config(TrainConfig(store="s"))
    save_checkpoint(run.checkpoint(2), values_of())
    return str(run.path)


def exported(run_folder, tmp_path, name="model.safetensors", **options):
    needed = {} if options.get("to", "safetensors") == "safetensors" else {"license": "cc-by-4.0"}
    return export.run(ExportConfig(checkpoint=run_folder, out=str(tmp_path / name), **needed | options))


def images_of(checkpoint, out, **options):
    config = SampleConfig(
        checkpoint=str(checkpoint), out=str(out), num_fid_samples=3, num_steps=2, device="cpu", **options
    )
    with np.load(sample.run(config).npz) as archive:
        return archive["arr_0"]


def test_an_exported_checkpoint_gives_the_same_images_and_initial_weights(run_folder, tmp_path):
    result = exported(run_folder, tmp_path)
    assert (result.step, result.weights) == (2, "ema")
    np.testing.assert_array_equal(images_of(result.out, tmp_path / "a.npz"), images_of(run_folder, tmp_path / "b.npz"))
    own, other = (load_initial_weights(path, 3) for path in (result.checkpoint, result.out))
    assert own.keys() == other.keys()
    assert all(torch.equal(own[name], other[name]) for name in own)


@pytest.mark.slow
def test_a_run_that_starts_from_an_exported_checkpoint_has_the_same_bits(config_of, tmp_path, weights_of):
    options = {"learning_rate": 1e-2, "ema_decay": 0.5, "max_train_steps": 2, "checkpointing_steps": 2}
    checkpoint = train.run(config_of(**options)).checkpoint
    other = exported(checkpoint, tmp_path).out
    own, found = (
        weights_of(train.run(config_of(init_from=path, exp_name=name, **options)))
        for name, path in (("from-own", checkpoint), ("from-exported", other))
    )
    assert own.keys() == found.keys()
    assert all(torch.equal(own[name], found[name]) for name in own)


def test_others_may_read_what_is_exported(run_folder, tmp_path):
    (tmp_path / "usual").touch()
    usual = (tmp_path / "usual").stat().st_mode
    assert Path(exported(run_folder, tmp_path).out).stat().st_mode == usual
    folder = Path(exported(run_folder, tmp_path, "folder", to="diffusers").out)
    assert {path.stat().st_mode for path in folder.rglob("*") if path.is_file()} == {usual}


def test_the_weights_without_ema_are_exported_with_no_ema(run_folder, tmp_path):
    result = exported(run_folder, tmp_path, ema=False)
    values = load_checkpoint(Path(result.checkpoint))
    assert all(torch.equal(value, values["model"][name]) for name, value in load_file(result.out).items())
    assert load_model(Path(result.out), ema=False).step == 2
    with pytest.raises(CheckpointError, match=r"was exported with the weights without EMA alone: add --no-ema"):
        load_model(Path(result.out), ema=True)
    with pytest.raises(CheckpointError, match=r"with the EMA weights alone: remove --no-ema"):
        load_model(Path(exported(run_folder, tmp_path, "ema.safetensors").out), ema=False)


def test_settings_are_exported_without_folders(run_folder, tmp_path):
    facts = json.loads(read_safetensors_metadata(Path(exported(run_folder, tmp_path).out))["repa_pipe.checkpoint"])
    found = [facts["config"][name] for name in ("store", "output_dir", "init_from")]
    assert (found, facts["steps"], facts["sit"]["depth"]) == (["mystore", "runs", "a.pt"], 2, 2)
    assert facts["store"]["fingerprints"]


def test_an_existing_file_is_kept_if_it_is_the_same_and_refused_if_not(run_folder, tmp_path):
    out = Path(exported(run_folder, tmp_path).out)
    before = out.stat().st_mtime_ns
    exported(run_folder, tmp_path)
    assert out.stat().st_mtime_ns == before
    with pytest.raises(ConfigError, match="exists and holds something else: delete it"):
        exported(run_folder, tmp_path, ema=False)
    other = tmp_path / "other.safetensors"
    for content in (b"text", out.read_bytes()[:-1]):
        other.write_bytes(content)
        with pytest.raises(ConfigError, match="exists and holds something else"):
            exported(run_folder, tmp_path, other.name)
        assert other.read_bytes() == content
    with pytest.raises(ConfigError, match=r"expected the name of a file that ends in \.safetensors"):
        exported(run_folder, tmp_path, "model.pt")


@pytest.mark.parametrize("where", ["tensor", "settings"])
def test_a_changed_byte_is_found(run_folder, tmp_path, where):
    out = Path(exported(run_folder, tmp_path).out)
    data = bytearray(out.read_bytes())
    place = len(data) - 5 if where == "tensor" else data.index(b"latents_scale")
    data[place] ^= 1
    out.write_bytes(data)
    with pytest.raises(DamagedCheckpointError, match="is damaged"):
        load_model(out, ema=True)


def test_a_file_of_a_later_format_is_refused(tmp_path):
    tensors, facts = exported_of(values_of(), ema=True)
    write_exported(tmp_path / "later.safetensors", tensors, facts | {"format": 2})
    with pytest.raises(CheckpointError, match="has format 2, expected 1: update repa-pipe"):
        read_exported(tmp_path / "later.safetensors")


def test_safetensors_of_other_programs_are_read_as_before(run_folder, tmp_path):
    weights = load_file(exported(run_folder, tmp_path).out)
    save_file(weights, tmp_path / "plain.safetensors")
    assert read_exported(tmp_path / "plain.safetensors") is None
    assert load_model(tmp_path / "plain.safetensors", ema=True).model.config.depth == 2


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("LightningDiT-T/1", "RAEv2-T", "JiT-T/16")]
SMALL = ["SiT-T/2", "DiT-DH-T", "SRDiT-T/1", *SLOW]


@pytest.mark.parametrize("name", SMALL)
def test_models_of_all_architectures_are_exported(tmp_path, name):
    assert name in model_names()
    channels = 3 if name.startswith("JiT") else 4
    values = values_of(
        name, dataclasses.replace(STORE, latents_scale=(2.0,) * channels, latents_bias=(0.5,) * channels)
    )
    path = tmp_path / "one.safetensors"
    assert write_exported(path, *exported_of(values, ema=True))
    loaded = load_model(path, ema=True)
    assert all(torch.equal(value, values["ema"][name]) for name, value in loaded.model.state_dict().items())
    assert loaded.model.config.to_dict() == read_model_config(values, name).to_dict()
    assert (loaded.step, loaded.store.latents_bias[0], loaded.config.model) == (2, 0.5, name)


def test_statistics_of_token_latents_are_exported(tmp_path):
    latents = {"mean": torch.randn(4, 8, 8), "var": torch.rand(4, 1, 1), "eps": 1e-5}
    store = dataclasses.replace(STORE, vae="", latents_scale=(), latents_bias=(), token_latents="enc", statistics="x")
    assert write_exported(tmp_path / "tokens.safetensors", *exported_of(values_of(store=store, latents=latents), True))
    found = load_model(tmp_path / "tokens.safetensors", ema=True).normalization
    assert torch.equal(found.mean, latents["mean"])
    assert torch.equal(found.var, latents["var"])
    assert found.eps == 1e-5
    with safe_open(tmp_path / "tokens.safetensors", "pt") as file:
        assert {"latents.mean", "latents.var"} <= set(file.keys())


def test_the_command_exports_and_previews(run_cli, run_folder, tmp_path):
    out = tmp_path / "a.safetensors"
    code, printed, _ = run_cli("export", run_folder, "--out", out, "--dry-run")
    assert (code, out.exists()) == (0, False)
    assert f"# writes: {out}: " in printed
    code, printed, _ = run_cli("export", run_folder, "--out", out)
    assert code == 0
    assert json.loads(printed)["num_bytes"] == out.stat().st_size
    shutil.copy(out, tmp_path / "copy.safetensors")
    code, _, errors = run_cli("export", tmp_path / "copy.safetensors", "--out", tmp_path / "b.safetensors")
    assert code == 2
    assert "is not a checkpoint of repa-pipe" in errors


@pytest.fixture
def folder(run_folder, tmp_path):
    return exported(run_folder, tmp_path, "pipeline", to="diffusers").out


def generated(folder, checkpoint, steps, scale):
    """Return images of the exported pipeline and of the sampler, [3, 3, 64, 64] from 0 to 1, of the same noise."""
    config = SampleConfig(
        checkpoint=str(checkpoint), num_fid_samples=3, num_steps=steps, cfg_scale=scale, labels="0,1,2", device="cpu"
    )
    trained = load_model(checkpoint, ema=True)
    sampler = Sampler(config, trained, torch.device("cpu"))
    vae = load_vae("tiny-kl-f8")
    scale, bias = trained.store.latents_scale[0], trained.store.latents_bias[0]
    with torch.no_grad():
        own = (vae.model.decode((sampler.latents(range(3)) - bias) / scale).sample / 2 + 0.5).clamp(0, 1)
    streams = RandomStreams(0, STREAMS_VERSION)
    noise = torch.stack([torch.randn(4, 8, 8, generator=streams.of_image(i)) for i in range(3)])
    pipeline = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    pipeline.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": steps, "guidance_scale": config.cfg_scale, "latents": noise}
    return pipeline, pipeline([0, 1, 2], output_type="pt", **options).images, own


@pytest.mark.parametrize(("steps", "scale"), [(7, 2.5), pytest.param(3, 1.0, marks=pytest.mark.slow)])
def test_diffusers_generates_the_images_of_sample(folder, run_folder, steps, scale):
    pipeline, images, own = generated(folder, RunFolder(Path(run_folder)).checkpoint(2), steps, scale)
    assert type(pipeline).__name__ == "SiTPipeline"
    assert pipeline.labels == {"cat": 0, "dog": 1, "owl": 2}
    assert pipeline.get_label_ids("owl") == [2]
    assert own.std() > 0.05
    assert (images - own).abs().max() <= 1e-5
    with pytest.raises(ValueError, match="expected numbers from 0 to 2"):
        pipeline([3])


def test_diffusers_own_classes_load_the_parts_without_remote_code(folder, run_folder):
    transformer = DiTTransformer2DModel.from_pretrained(folder, subfolder="transformer")
    vae = AutoencoderKL.from_pretrained(folder, subfolder="vae")
    assert (vae.config.scaling_factor, vae.config.shift_factor) == (2.0, -0.25)
    model = load_model(RunFolder(Path(run_folder)).checkpoint(2), ema=True).model
    torch.manual_seed(1)
    x_t, t, labels = torch.randn(16, 4, 8, 8), torch.linspace(0, 1, 16), torch.arange(16) % 4
    with torch.no_grad():
        own = model(x_t, t, labels, project=False)[0]
        found = transformer(x_t, timestep=1000 * t, class_labels=labels).sample
    assert own.std() > 0.05
    torch.testing.assert_close(found, own, rtol=0, atol=1e-5)


def test_one_embedding_of_times_is_a_combination_of_the_other():
    times = torch.rand(500, dtype=torch.float64)
    found = _embedded(times * TIME_SCALE, 128, 127) @ _fit_times(torch.eye(256, dtype=torch.float64)).T
    assert (found - _embedded(times, 128, 128)).abs().max() < 1e-8


@pytest.mark.slow
def test_scales_per_channel_are_those_of_the_exported_vae(tmp_path):
    store = dataclasses.replace(STORE, latents_scale=(1.0, 2.0, 3.0, 4.0), latents_bias=(0.5, -0.5, 0.0, 1.0))
    checkpoint = tmp_path / "0000002.pt"
    save_checkpoint(checkpoint, values_of(store=store))
    folder = exported(str(checkpoint), tmp_path, "pipeline", to="diffusers").out
    pipeline = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    latents, config = torch.randn(2, 4, 8, 8), pipeline.vae.config
    vae = load_vae("tiny-kl-f8").with_scale(store.latents_scale, store.latents_bias)
    found = (pipeline._decode(latents, "pt") * 255).to(torch.uint8)
    assert (found.int() - vae.decode(latents).int()).abs().max() <= 1
    assert config.latents_std == [1, 1 / 2, 1 / 3, 1 / 4]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "LightningDiT-T/1"}, "exports SiT only, found LightningDiT: use --to safetensors"),
        ({"model": {"qk_norm": True}}, "it normalizes queries and keys"),
        ({"model": {"class_dropout_prob": 0.0}}, "it has no null label"),
        ({"model": {"cls_dim": 32}}, "it denoises a class token"),
        ({"config": {"time_shift": 2.0}}, "shifted by 2, expected no shift"),
    ],
    ids=["architecture", "norm", "labels", "class-token", "times"],
)
def test_models_that_diffusers_does_not_know_are_refused(tmp_path, change, message):
    values = values_of(change.get("name", "SiT-T/2"))
    if "model" in change:
        config = dataclasses.replace(read_model_config(values, ""), **change["model"])
        values |= {"sit": config.to_dict(), "ema": make_model(config).state_dict()}
    values["config"] = values["config"] | change.get("config", {})
    save_checkpoint(tmp_path / "a.pt", values)
    with pytest.raises(CheckpointError, match=message):
        exported(str(tmp_path / "a.pt"), tmp_path, "pipeline", to="diffusers")
    assert not list(tmp_path.glob("pipeline*"))


def test_an_existing_folder_is_kept_or_refused(folder, run_folder, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in Path(folder).rglob("*")}
    exported(run_folder, tmp_path, "pipeline", to="diffusers")
    assert {path: path.stat().st_mtime_ns for path in Path(folder).rglob("*")} == before
    with pytest.raises(ConfigError, match="exists and holds something else"):
        exported(run_folder, tmp_path, "pipeline", to="diffusers", ema=False)
    with pytest.raises(ConfigError, match="expected a folder"):
        exported(run_folder, tmp_path, "a.safetensors", to="diffusers")


def test_the_card_states_training_license_curves_and_metrics(run_folder, tmp_path):
    run = RunFolder(Path(run_folder))
    log = MetricsLog(run, 0)
    for step in range(1, 4):
        log.add({"step": step, "loss": 2.0, "denoising_loss": 1.0 / step, "images_per_s": 1.0, "data_wait": 0.0})
    log.write()
    config = SampleConfig(checkpoint=run_folder, num_fid_samples=16)
    for name, step, ema in (("0000002-a", 2, True), ("0000001-a", 1, True), ("0000002-raw", 2, False)):
        files = SampleFiles(run.samples / f"{name}.npz")
        record = dataclasses.replace(config, ema=ema)
        files.npz.parent.mkdir(exist_ok=True)
        files.write_record(record, {}, SampleResult(str(files.npz), str(files.grid), 16, step, 1.0))
        save_grid(files.grid, np.full((4, 8, 8, 3), 10 * step, np.uint8), 2)
        inputs = {"path": "/data/ref.npz", "statistics": "images", "statistics_images": 50_000, "images": 50_000}
        detectors = {"inception": {"name": "inception", "width": 2048, "reference": inputs}}
        evaluation = EvaluateConfig(samples=str(files.npz), reference="/data/ref.npz")
        write_metrics_file(
            files.metrics, MetricRecord({"fid": 12.5 + step}, 16, 50_000, detectors, (), evaluation, 1.0, {})
        )
    (run.samples / "0000002-b.json").write_text("{")
    folder = Path(exported(run_folder, tmp_path, "my-model", to="diffusers").out)
    card = (folder / "README.md").read_text()
    assert card.startswith('---\nlicense: "cc-by-4.0"\nlibrary_name: diffusers\n')
    assert "| step | 2 of batches of 256 (512 images) |" in card
    assert "repa-pipe train --store mystore" in card
    assert "/home/me" not in card + (folder / "repa_pipe.json").read_text()
    table = [line for line in card.splitlines() if line.startswith("| fid")]
    expected = "| fid | 14.50 | inception | 16 | 50,000 reference images (ref.npz) | ode50-cfg1.5-seed0-16 |"
    assert table == [expected]
    with Image.open(folder / "samples.png") as grid, Image.open(folder / "curves.png") as curves:
        assert np.asarray(grid).max() == 20
        assert len({pixel for _, pixel in curves.getcolors(1 << 16)}) > 3
    assert "![denoising_loss over steps](curves.png)" in card


def test_a_folder_needs_a_license(tmp_path):
    with pytest.raises(ConfigError, match="--license is None: expected the license of the weights"):
        ExportConfig(checkpoint="run", out="folder", to="diffusers")
    with pytest.raises(ConfigError, match="requires --to diffusers"):
        ExportConfig(checkpoint="run", out="a.safetensors", license="mit")
