"""`nearest` finds planted copies of training images first, and states how near other images are."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from repa_pipe.config import EncodeConfig, NearestConfig
from repa_pipe.errors import ConfigError, SourceError, WeightsError
from repa_pipe.models.encoders import load_encoder
from repa_pipe.pipeline import encode, nearest
from repa_pipe.pipeline.nearest import BASELINE, SAMPLES
from repa_pipe.pipeline.reporting import neighbors
from repa_pipe.sources import center_crop
from repa_pipe.sources.demo_images import photographs
from repa_pipe.stores import open_store
from repa_pipe.stores.metadata_writer import set_attributes
from repa_pipe.stores.tokens import read_tokens

ENCODER = "efficientnet-lite0"


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """A store of twelve photographs at 64 pixels, with int8 tokens, and `samples.npz`: three others and two copies."""
    root = tmp_path_factory.mktemp("nearest")
    crops = []
    for number, (path, _) in enumerate(photographs()[:15]):
        with Image.open(path) as photograph:
            crops.append(center_crop(photograph, 64))
        target = root / f"images/class-{number % 2}/{number:02d}.png"
        if number < 12:
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(crops[-1]).save(target)
    options = {"vae": "tiny-kl-f8", "encoder": (ENCODER,), "codec": "int8", "resolution": 64, "device": "cpu"}
    encode.run(EncodeConfig(source=str(root / "images"), store=str(root / "store"), **options))
    np.savez(root / "samples.npz", arr_0=np.stack([*crops[12:], crops[5], crops[8]]))
    return root


@pytest.fixture
def config_of(originals, tmp_path):
    def config(**changes):
        options = {"samples": str(originals / "samples.npz"), "store": str(originals / "store"), "device": "cpu"}
        return NearestConfig(**options | {"out": str(tmp_path / "nearest.json"), "batch_size": 2} | changes)

    return config


def test_planted_copies_are_found_first(config_of, monkeypatch):
    monkeypatch.setattr(nearest, "BLOCK", 5)
    result = nearest.run(config_of())
    first, second = result.record.closest[:2]
    assert {first["sample"], second["sample"]} == {3, 4}
    by_sample = {each["sample"]: each["neighbors"] for each in result.record.closest}
    assert by_sample[3][0]["key"].endswith("05.png")
    assert by_sample[4][0]["key"].endswith("08.png")
    assert max(by_sample[number][0]["distance"] for number in (3, 4)) < 1e-4  # that of int8
    assert min(by_sample[number][0]["distance"] for number in (0, 1, 2)) > result.record.threshold / 4 > 1e-3
    assert result.record.fraction >= 0.4
    assert f"{result.record.fraction:.2%} of 5 generated images" in result.table
    text = Path(result.page).read_text()
    assert text.count("<img") == 5 * 4
    shown, given = neighbors._samples(config_of(), [4, 0, 3]), np.load(config_of().samples)["arr_0"]
    assert {number: bytes(image) for number, image in shown.items()} == {n: bytes(given[n]) for n in (4, 0, 3)}
    assert "decoded from" not in text


def test_distances_are_cosines_of_the_mean_tokens_of_store_and_encoder(config_of, originals):
    record = nearest.run(config_of()).record
    with open_store(originals / "store") as store:
        train = read_tokens(store, f"features/{ENCODER}", np.arange(12)).mean(1).double().numpy()
    images = torch.from_numpy(np.load(originals / "samples.npz")["arr_0"]).permute(0, 3, 1, 2)
    samples = load_encoder(ENCODER, None, 64)(images).patch_tokens.mean(1).double().numpy()
    train, samples = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (train, samples))
    expected = 1 - samples @ train.T
    for each in record.closest:
        found = [one["distance"] for one in each["neighbors"]]
        np.testing.assert_allclose(found, np.sort(expected[each["sample"]])[:3], atol=1e-5)
    own = 1 - train @ train.T + 9 * np.eye(12)
    assert record.threshold == pytest.approx(np.quantile(own.min(1), 0.01), abs=1e-5)
    assert record.distances[BASELINE]["median"] == pytest.approx(np.median(own.min(1)), abs=1e-5)
    assert record.distances[SAMPLES]["mean"] == pytest.approx(expected.min(1).mean(), abs=1e-5)
    assert record.fraction == (expected.min(1) < np.quantile(own.min(1), 0.01)).mean()
    assert record.num_baseline == 12
    assert "expected at least 100" in record.notes[0]


@pytest.mark.slow
def test_finished_results_are_kept_and_other_samples_are_searched_again(
    config_of, originals, tmp_path, caplog, run_cold
):
    first = nearest.run(config_of())
    [(code, errors, heavy)] = run_cold(["nearest", *config_of().flags()])
    assert (code, heavy) == (0, []), errors
    again = nearest.run(config_of(batch_size=3))
    assert again.record == first.record
    assert "already exists with the same settings" in caplog.text
    other = tmp_path / "other.npz"
    np.savez(other, arr_0=np.load(originals / "samples.npz")["arr_0"][:3])
    assert nearest.run(config_of(samples=str(other))).record.num_samples == 3


@pytest.mark.slow
def test_without_source_images_the_page_shows_decoded_latents_and_says_so(config_of, originals, tmp_path):
    store = shutil.copytree(originals / "store", tmp_path / "store")
    moved = (originals / "images").rename(originals / "moved")
    try:
        result = nearest.run(config_of(store=str(store)))
        with pytest.raises(SourceError, match="nowhere"):
            nearest.run(config_of(store=str(store), source=str(tmp_path / "nowhere"), seed=1))
        given = nearest.run(config_of(store=str(store), source=str(moved), seed=2))
    finally:
        moved.rename(originals / "images")
    assert any("decoded from latents/tiny-kl-f8" in note for note in result.record.notes)
    assert not any("decoded from" in note for note in given.record.notes)
    assert json.loads((tmp_path / "nearest.json").read_text())["closest"] == given.record.closest


def test_what_cannot_be_compared_is_refused(config_of, originals, tmp_path):
    large = tmp_path / "large.npz"
    np.savez(large, arr_0=np.zeros((2, 96, 96, 3), np.uint8))
    with pytest.raises(ConfigError, match=r"has images of 96 pixels, .* of 64"):
        nearest.run(config_of(samples=str(large)))
    store = shutil.copytree(originals / "store", tmp_path / "store")
    group = f"features/{ENCODER}"
    with open_store(store) as opened:
        fingerprint = opened.group(group).fingerprint
    set_attributes(store, group, {"fingerprint": fingerprint | {"weights_sha256": "0" * 64}})
    with pytest.raises(WeightsError, match="are not those that encoded"):
        nearest.run(config_of(store=str(store)))
    with pytest.raises(ConfigError, match="--num-baseline is 1"):
        config_of(num_baseline=1)
