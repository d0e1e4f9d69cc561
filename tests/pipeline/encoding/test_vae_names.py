"""A VAE in a folder is one VAE, whatever the spelling of its path: one group, one run."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from repa_pipe.config import EncodeConfig, TrainConfig
from repa_pipe.errors import ConfigError
from repa_pipe.models import vae_files
from repa_pipe.pipeline import encode, encode_latents, train
from repa_pipe.stores import AlignmentDataset, open_store
from repa_pipe.stores.metadata_writer import record_digests

WEIGHTS = Path(vae_files.__file__).parent / "weights"


@pytest.fixture
def spellings(tmp_path, monkeypatch):
    """Write images and a VAE, and return spellings of its path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    Path("models/vae").mkdir(parents=True)
    shutil.copy(WEIGHTS / "tiny-kl-f8.json", "models/vae/config.json")
    shutil.copy(WEIGHTS / "tiny-kl-f8.safetensors", "models/vae/diffusion_pytorch_model.safetensors")
    Path("link").symlink_to("models/vae")
    rng = np.random.default_rng(0)
    for number in range(8):
        path = Path(f"images/{number % 2}/{number}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (256, 256, 3), np.uint8)).save(path)
    return ["./models/vae", "models/vae/", "link", str(tmp_path / "models/vae"), "~/models/vae"]


def encoding(vae, **options):
    return EncodeConfig(source="images", store="store", vae=vae, device="cpu", **options)


def training(vae, **options):
    defaults = {"proj_coeff": 0.0, "model": "SiT-T/2", "batch_size": 4, "max_train_steps": 1, "exp_name": "run"}
    return TrainConfig(store="store", vae=vae, device="cpu", **defaults | options)


@pytest.mark.slow
def test_every_spelling_encodes_one_group_and_resumes_one_run(spellings, tmp_path):
    first, *others = [encode.run(encoding(spelling)) for spelling in spellings]
    assert (first.encoded, [result.encoded for result in others]) == (8, [0] * 4)
    assert encode_latents.run(encoding(spellings[2])).encoded == 0
    with open_store("store") as store:
        assert len(store.group_names()) == 1
        assert store.group(store.group_names()[0]).attributes["vae"] == str(tmp_path.resolve() / "models/vae")
        assert AlignmentDataset(store, latents=spellings[0], batch_size=4).latents == store.group_names()[0]
        unspelled = store.vaes[0]
    for steps, spelling in enumerate([spellings[0], spellings[2], unspelled, None], start=1):
        assert train.run(training(spelling, max_train_steps=steps)).step == steps
    shutil.copytree("models/vae", "models/other")
    with pytest.raises(ConfigError, match=r"--vae: recorded .*models--vae.*, requested .*models/other"):
        encode.run(encoding("models/other"))
        train.run(training("models/other"))


def test_groups_and_runs_of_earlier_versions_are_found_under_their_spelling(spellings):
    encode.run(encoding(spellings[0]))
    with open_store("store") as store:
        name = store.vaes[0]
    for kind in ("", "commits"):  # earlier versions named the group after the spelling
        Path("store", kind, "latents", name).rename(Path("store", kind, "latents/.--models--vae"))
    attributes = Path("store/latents/.--models--vae/zarr.json")
    values = json.loads(attributes.read_text())
    values["attributes"]["vae"] = "./models/vae"
    attributes.write_text(json.dumps(values))
    record_digests(Path("store"))
    assert [encode.run(encoding(spelling)).encoded for spelling in spellings] == [0] * 5
    with open_store("store") as store:
        assert store.group_names() == ["latents/.--models--vae"]
    for steps, spelling in enumerate(spellings[:2], start=1):
        assert train.run(training(spelling, max_train_steps=steps)).step == steps


def test_a_known_name_is_not_a_folder_of_the_same_name(spellings):
    shutil.copytree("models/vae", "tiny-kl-f8")
    encode.run(encoding("tiny-kl-f8"))
    with open_store("store") as store:
        assert store.group_names() == ["latents/tiny-kl-f8"]
