"""Published checkpoints of models on other latents than REPA's: REPA-E, LightningDiT, RAE, RAEv2, SR-DiT."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from repa_pipe.config import SampleConfig
from repa_pipe.converter import structure
from repa_pipe.errors import CheckpointError, ConfigError, WeightsError
from repa_pipe.models.architectures import make_model
from repa_pipe.models.dit_dh.config import DIT_DH_PRESETS, DiTDHConfig
from repa_pipe.models.lightningdit.config import LIGHTNINGDIT_PRESETS, LightningDiTConfig
from repa_pipe.models.raev2.config import RAEV2_PRESETS, RAEv2Config
from repa_pipe.models.sit import sit_config
from repa_pipe.models.srdit.config import SRDIT_PRESETS, SRDiTConfig
from repa_pipe.pipeline import sample
from repa_pipe.pipeline.artifacts.checkpoints import load_model
from repa_pipe.pipeline.artifacts.published import Unrecorded, published_model

REFERENCE = Path(__file__).parents[2] / "reference"
sys.path.insert(0, str(Path(__file__).parents[2] / "agreement"))
from case import Case, filled  # noqa: E402

XL = {
    "lightningdit": LightningDiTConfig(input_size=16, in_channels=32, **LIGHTNINGDIT_PRESETS["LightningDiT-XL/1"]),
    "rae_ditdh": DiTDHConfig(input_size=16, in_channels=768, **DIT_DH_PRESETS["DiT-DH-XL"]),
    "raev2_ditig": RAEv2Config(input_size=16, in_channels=1024, **RAEV2_PRESETS["RAEv2-XL"]),
    "repae_sit": sit_config("SiT-XL/1", input_size=16, in_channels=32),
    "srdit": SRDiTConfig(input_size=16, in_channels=32, cls_dim=768, z_dims=(768,), **SRDIT_PRESETS["SRDiT-B/1"]),
}


@pytest.fixture
def stats(tmp_path):
    """Write a statistics file as a program publishes it, and return its path."""

    def write(channels=6, side=4, **changes):
        generator = torch.Generator().manual_seed(0)
        values = {"mean": torch.randn(channels, side, side, generator=generator)}
        values["var"] = torch.rand(channels, side, side, generator=generator) + 0.5
        path = tmp_path / "stats.pt"
        torch.save({name: value for name, value in (values | changes).items() if value is not None}, path)
        return str(path)

    return write


def of_lightningdit(channels, **changes):
    shape = (1, channels, 1, 1)
    return {"mean": torch.full(shape, 0.5), "std": torch.full(shape, 2.0), "var": None} | changes


@pytest.mark.parametrize("name", XL)
def test_sizes_follow_from_the_published_tensors(stats, name):
    listed = json.loads((REFERENCE / f"{name}_checkpoint.json").read_text())
    config = XL[name]
    with torch.device("meta"):
        tensors = {key: torch.empty(shape) for key, shape in listed["tensors"].items()}
    if name == "repae_sit":  # their values are read
        tensors |= {"bn.running_mean": torch.ones(32), "bn.running_var": torch.full((32,), 4.0)}
    path = stats(config.in_channels, 16) if name != "lightningdit" else stats(**of_lightningdit(32))
    stated = Unrecorded(latents_stats=None if name in {"repae_sit", "srdit"} else path)
    with torch.device("meta"):
        found = published_model({"ema": tensors}, True, Path("a.pt"), stated)
    assert found.model.config == config
    shifts = {"rae_ditdh": (768 * 256 / 4096) ** 0.5, "raev2_ditig": 8.0, "srdit": 2**0.5}
    assert found.time_shift == pytest.approx(shifts.get(name, 1.0))
    if name == "repae_sit":
        assert (found.latents.scale[0], found.latents.bias[0], found.latents.vae) == (0.5, -0.5, None)
    if name == "srdit":
        assert (found.latents.scale, found.latents.bias, found.latents.vae) == ((0.3099,) * 32, (0.0,) * 32, None)
    if name == "lightningdit":
        assert (found.latents.scale[0], found.latents.bias[0]) == (0.5, -0.25)


RECORDED = {"lightningdit": LightningDiTConfig, "rae_ditdh": DiTDHConfig, "raev2_ditig": RAEv2Config}


@pytest.mark.parametrize("with_tables", [True, False], ids=["with tables of positions", "without"])
@pytest.mark.parametrize("name", RECORDED)
def test_a_file_of_recorded_weights_gives_the_recorded_velocities(stats, tmp_path, monkeypatch, name, with_tables):
    case = Case.read(REFERENCE / f"{name}.npz")
    own = {"condition_type", "enable_repa", "patch_size", "learn_sigma", "use_checkpoint"}
    settings = {key: value for key, value in case.config["model"].items() if key not in own}
    config = structure(settings, RECORDED[name], "config")
    scales = {r".*\.W": case.config.get("W_scale", 1.0), "": case.config.get("matrix_scale", 1.0)}
    if name == "rae_ditdh":
        scales = {"y_embedder.*": case.config["label_table_scale"]} | scales
    keep = case.config.get("fill_keep", case.config.get("keep"))
    weights = filled(make_model(config).state_dict(), case.config["fill_seed"], keep, scales)
    presets = {"lightningdit": LIGHTNINGDIT_PRESETS, "rae_ditdh": DIT_DH_PRESETS, "raev2_ditig": RAEV2_PRESETS}[name]
    sizes = {key: getattr(config, key) for key in ("hidden_size", "depth", "num_heads")}
    monkeypatch.setitem(presets, "test", sizes)
    if not with_tables:
        kept = "dec_rope" if name == "raev2_ditig" else "nothing"  # the only tensor that has the size of the grid
        weights = {key: value for key, value in weights.items() if "freqs" not in key or kept in key}
    torch.save({"ema": weights}, tmp_path / "published.pt")
    channels, side = config.in_channels, config.input_size
    path = stats(**of_lightningdit(channels)) if name == "lightningdit" else stats(channels, side)
    model = load_model(tmp_path / "published.pt", True, Unrecorded(latents_stats=path)).model
    t = case["step0_t"] if name == "lightningdit" else case["eval_t"]
    sign, t = (-1, 1 - t) if name == "lightningdit" else (1, t)
    with torch.no_grad():
        velocity = model(case["eval_xt"], t, case["step0_labels"])[0]
    expected = sign * case["eval_velocity" if name == "raev2_ditig" else "eval_v"]
    torch.testing.assert_close(velocity, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


SMALL_PAIR = {"input_size": 4, "num_classes": 5, "hidden_size": (192, 256), "depth": (2, 1), "num_heads": (3, 4)}
SMALL = {
    "RAE": DiTDHConfig(in_channels=6, **SMALL_PAIR),
    "RAEv2": RAEv2Config(in_channels=6, base_model_depth=2, **SMALL_PAIR),
    "LightningDiT": LightningDiTConfig(
        input_size=8, in_channels=4, num_classes=5, hidden_size=192, depth=2, num_heads=3
    ),
}


def write(path, config):
    torch.manual_seed(0)
    model = make_model(config)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.02)
    torch.save({"ema": model.state_dict()}, path)
    return str(path)


def images_of(checkpoint, tmp_path, **options):
    defaults = {"num_fid_samples": 2, "num_steps": 2, "device": "cpu", "out": str(tmp_path / "samples.npz")}
    result = sample.run(SampleConfig(checkpoint=checkpoint, **defaults | options))
    with np.load(result.npz) as archive:
        return archive["arr_0"]


@pytest.mark.parametrize("guidance", ["none", "channels", "auto"])
def test_a_lightningdit_is_sampled_with_its_vae_and_guidance(stats, tmp_path, guidance):
    checkpoint = write(tmp_path / "lightningdit.pt", SMALL["LightningDiT"])
    options = {"vae": "tiny-kl-f8", "latents_stats": stats(**of_lightningdit(4)), "time_shift": 1 / 0.3}
    images = images_of(checkpoint, tmp_path, **options, cfg_scale=1.0)
    assert images.shape == (2, 64, 64, 3)
    assert images.std() > 1
    if guidance == "channels":
        guided = images_of(checkpoint, tmp_path, **options, cfg_scale=4.0, guidance_channels=3)
        assert (guided != images).any()
        assert (guided != images_of(checkpoint, tmp_path, **options, cfg_scale=4.0)).any()
    if guidance == "auto":
        auto = {"cfg_scale": 4.0, "guidance_checkpoint": checkpoint}
        again = images_of(checkpoint, tmp_path, **options, **auto)  # guided away from itself
        assert np.abs(again.astype(int) - images).max() <= 1


@pytest.mark.parametrize("name", ["RAE", "RAEv2"])
def test_models_of_tokens_require_statistics_and_a_decoder(stats, tmp_path, name):
    checkpoint = write(tmp_path / "model.pt", SMALL[name])
    with pytest.raises(CheckpointError, match=r"does not record the statistics .*stat\.pt of RAE and RAEv2"):
        images_of(checkpoint, tmp_path)
    with pytest.raises(ConfigError, match="the latents are tokens of an encoder: pass --decoder"):
        images_of(checkpoint, tmp_path, latents_stats=stats())
    trained = load_model(Path(checkpoint), True, Unrecorded(latents_stats=stats(var=None)))
    assert trained.normalization.var.tolist() == [[[1.0]]]
    assert trained.normalization.eps == 1e-5
    with pytest.raises(CheckpointError, match=r"for latents \[6, 4, 4\]"):
        load_model(Path(checkpoint), True, Unrecorded(latents_stats=stats(channels=7)))
    with pytest.raises(ConfigError, match="--path-type is 'cosine'"):
        load_model(Path(checkpoint), True, Unrecorded("cosine", stats()))


def test_the_vae_of_a_lightningdit_is_required(stats, tmp_path):
    checkpoint = write(tmp_path / "model.pt", SMALL["LightningDiT"])
    with pytest.raises(ConfigError, match="does not record the VAE of its latents: pass --vae"):
        images_of(checkpoint, tmp_path, latents_stats=stats(**of_lightningdit(4)))
    with pytest.raises(WeightsError, match=r"with a scale other than 0, found .* for std"):
        load_model(Path(checkpoint), True, Unrecorded(latents_stats=stats(**of_lightningdit(4, std=torch.zeros(4)))))


@pytest.mark.parametrize(
    ("name", "missing", "message"),
    [
        ("RAE", "pos_embed", "does not hold a DiT-DH ('pos_embed' is missing or malformed)"),
        ("RAEv2", "dec_rope.freqs_cos", "does not hold a RAEv2 ('dec_rope.freqs_cos' is missing or malformed)"),
        ("LightningDiT", "blocks.1.attn.qkv.weight", "blocks.1.attn.qkv.weight is missing"),
    ],
)
def test_files_without_a_tensor_are_refused(stats, tmp_path, name, missing, message):
    path = Path(write(tmp_path / "model.pt", SMALL[name]))
    values = torch.load(path)
    del values["ema"][missing]
    torch.save(values, path)
    with pytest.raises(CheckpointError) as error:
        load_model(path, True, Unrecorded(latents_stats=stats()))
    assert message in str(error.value)
    assert str(path) in str(error.value)


def test_the_batch_norm_of_repa_e_must_be_that_of_the_latents(tmp_path):
    model = make_model(sit_config("SiT-T/1", input_size=4, in_channels=6, num_classes=5))
    norm = {"bn.running_mean": torch.zeros(6), "bn.num_batches_tracked": torch.tensor(7)}
    for var in (torch.zeros(6), torch.ones(5), None):
        tensors = model.state_dict() | norm | ({} if var is None else {"bn.running_var": var})
        torch.save({"ema": tensors}, tmp_path / "a.pt")
        with pytest.raises(CheckpointError, match=r"a\.pt: bn: expected running_mean and running_var of 6 channels"):
            load_model(tmp_path / "a.pt", ema=True)
