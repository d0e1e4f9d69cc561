"""Checkpoints in the format of REPA's trainer, written here with its keys, options and older names."""

import argparse
import dataclasses

import numpy as np
import pytest
import torch

from repa_pipe.config import SampleConfig
from repa_pipe.errors import CheckpointError, WeightsError
from repa_pipe.models.sit import SiT, sit_config
from repa_pipe.pipeline import sample
from repa_pipe.pipeline.artifacts import published
from repa_pipe.pipeline.artifacts.checkpoints import load_model, resolve_checkpoint

CONFIG = sit_config(
    "SiT-T/2", input_size=8, in_channels=4, num_classes=5, z_dims=(24, 16), encoder_depth=2, projector_dim=32
)


@pytest.fixture
def model():
    torch.manual_seed(0)
    built = SiT(CONFIG)
    for parameter in built.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.05)
    return built.eval()


def save(path, model, **changes):
    weights = model.state_dict()
    args = argparse.Namespace(path_type="cosine", encoder_depth=2, output_dir="exps", learning_rate=1e-4)
    values = {
        "model": {name: value + 1 for name, value in weights.items()},
        "ema": weights,
        "opt": {"state": {}, "param_groups": [{"lr": 1e-4}]},
        "args": args,
        "steps": 400_000,
    }
    torch.save(values | changes, path)
    return path


def velocity(model):
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model(x, torch.tensor([0.3, 0.9]), torch.tensor([1, 5]))


def test_a_published_checkpoint_loads_as_the_model_that_was_saved(model, tmp_path):
    loaded = load_model(save(tmp_path / "0400000.pt", model), ema=True)
    assert loaded.model.config == CONFIG
    assert loaded.step == 400_000
    assert loaded.config.path_type == "cosine"
    assert loaded.store.vae == "sd-vae-ft-ema"
    assert loaded.store.latents_scale == (0.18215,) * 4
    ours, theirs = velocity(loaded.model), velocity(model)
    torch.testing.assert_close(ours, theirs)
    raw = load_model(tmp_path / "0400000.pt", ema=False)
    assert torch.equal(raw.model.pos_embed, model.pos_embed + 1)


def older_names(weights, encoder_depth):
    renamed = {}
    for name, value in weights.items():
        kind, *rest = name.split(".")
        if kind == "blocks" and int(rest[0]) >= encoder_depth:
            kind, rest[0] = "decoder_blocks", str(int(rest[0]) - encoder_depth)
        renamed[".".join(["module", kind, *rest])] = value
    return renamed


def test_older_names_are_accepted(model, tmp_path):
    path = tmp_path / "older.pt"
    torch.save({"ema": older_names(model.state_dict(), 2), "model": {}, "steps": 1}, path)
    loaded = load_model(path, ema=True)
    assert loaded.model.config == CONFIG
    torch.testing.assert_close(velocity(loaded.model), velocity(model))


def test_the_released_file_holds_ema_weights_alone(model, tmp_path):
    path = tmp_path / "last.pt"
    torch.save(model.state_dict(), path)
    loaded = load_model(path, ema=True)
    assert loaded.model.config == dataclasses.replace(CONFIG, encoder_depth=6)  # not in the file: all 6 blocks
    assert torch.equal(velocity(loaded.model)[0], velocity(model)[0])
    with pytest.raises(CheckpointError, match="holds EMA weights only: remove --no-ema"):
        load_model(path, ema=False)


def test_the_config_of_sit_xl_is_inferred_from_its_weights():
    with torch.device("meta"):
        weights = SiT(sit_config("SiT-XL/2", input_size=32, in_channels=4)).state_dict()
    from repa_pipe.models.sit.infer_config import infer_sit_config

    assert infer_sit_config(weights) == sit_config("SiT-XL/2", input_size=32, in_channels=4)


def test_a_published_checkpoint_can_be_sampled(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = save(tmp_path / "0400000.pt", model)
    result = sample.run(
        SampleConfig(checkpoint=str(path), vae="tiny-kl-f8", num_fid_samples=3, num_steps=2, device="cpu")
    )
    assert result.npz == "samples/0400000-ode2-cfg1.5-tiny-kl-f8-seed0-3.npz"
    assert result.step == 400_000
    with np.load(result.npz) as archive:
        assert archive["arr_0"].shape == (3, 64, 64, 3)
        assert set(archive["arr_1"].tolist()) <= set(range(5))


def test_code_in_a_checkpoint_is_not_executed(model, tmp_path):
    class Trap:
        def __reduce__(self):
            return (tmp_path.joinpath("ran").touch, ())

    path = save(tmp_path / "trap.pt", model, args=Trap())
    with pytest.raises(CheckpointError, match="cannot be read as a checkpoint"):
        load_model(path, ema=True)
    assert not (tmp_path / "ran").exists()


def test_the_error_names_a_file_with_weights_of_another_model(tmp_path):
    path = tmp_path / "other.pt"
    torch.save({"ema": {"conv.weight": torch.zeros(1)}, "model": {}}, path)
    with pytest.raises(CheckpointError, match=r"other\.pt: the checkpoint does not hold a SiT with REPA"):
        load_model(path, ema=True)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("REPA_PIPE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "checkpoints"


def test_a_released_checkpoint_is_downloaded_once_and_verified(cache, tmp_path, monkeypatch):
    (tmp_path / "remote.pt").write_bytes(b"weights")
    other = "9a0364b9e99bb480dd25e1f0284c8555"  # not the sha256 of these bytes
    entry = published.Published((tmp_path / "remote.pt").as_uri(), None)
    monkeypatch.setitem(published.PUBLISHED, "tiny", entry)
    monkeypatch.setitem(published.PUBLISHED, "wrong", dataclasses.replace(entry, sha256=other))
    path = resolve_checkpoint("tiny")
    assert path == cache / "tiny.pt"
    (tmp_path / "remote.pt").unlink()
    assert resolve_checkpoint("tiny").read_bytes() == b"weights"
    (tmp_path / "remote.pt").write_bytes(b"weights")
    with pytest.raises(WeightsError, match="invalid hash value"):
        resolve_checkpoint("wrong")
    assert [found.name for found in cache.iterdir()] == ["tiny.pt"]


def test_without_a_network_the_error_names_the_url_and_the_path(cache, monkeypatch):
    def fail(*_args, **_options):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(WeightsError) as caught:
        resolve_checkpoint("repa-sit-xl-2-256")
    for words in ("no network", "dropboxusercontent.com", str(cache / "repa-sit-xl-2-256.pt"), "--checkpoint"):
        assert words in str(caught.value)
