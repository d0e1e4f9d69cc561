"""One group for a VAE, whatever the spelling of its path."""

import dataclasses
from pathlib import Path

import pytest

from repa_pipe.stores import open_store
from repa_pipe.stores.layout import latents_group
from repa_pipe.stores.model_names import canonical_name


@pytest.fixture
def spellings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    Path("models/vae").mkdir(parents=True)
    Path("link").symlink_to("models/vae")
    return ["models/vae", "./models/vae", "models/vae/", "link", "models/../link", "~/models/vae", f"{tmp_path}/link/"]


def test_all_spellings_of_a_folder_have_one_name(spellings, tmp_path):
    assert {canonical_name(each) for each in spellings} == {str(tmp_path.resolve() / "models/vae")}


@pytest.mark.parametrize("name", ["sd-vae-ft-mse", "owner/name", "owner/name/vae", "timm:vit", ""])
def test_names_that_are_not_folders_remain(name):
    assert canonical_name(name) == name


def test_a_folder_that_is_elsewhere_has_one_name_for_its_relative_spellings():
    assert {canonical_name(each) for each in ("vae", "./vae", "vae/", "models/../vae")} == {"vae"}


@pytest.mark.parametrize("recorded", range(7))
def test_a_store_finds_the_latents_that_any_spelling_was_encoded_with(spellings, recorded, helpers, tmp_path):
    name, path = spellings[recorded], tmp_path / "store"
    attributes = helpers.LATENTS.attributes | {"vae": name}
    group = dataclasses.replace(helpers.LATENTS, path=latents_group(name), attributes=attributes)
    manifest = helpers.new_store(path)
    helpers.write_group(path, manifest, helpers.LATENTS)
    helpers.write_group(path, manifest, group)
    Path("models/other").mkdir()
    with open_store(path) as store:
        for spelling in spellings:
            assert latents_group(store.vae_name(spelling)) == group.path
        assert store.vae_name("tiny") == "tiny"
        assert store.vae_name("models/other") == str(tmp_path.resolve() / "models/other")
