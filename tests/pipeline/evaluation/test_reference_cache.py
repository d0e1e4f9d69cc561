"""The cache of references: one entry per images, detector and kind of device."""

import base64
import json

import numpy as np
import pytest
import torch
from PIL import Image

from repa_pipe.config import EvaluateConfig
from repa_pipe.metrics import Features
from repa_pipe.pipeline.artifacts.images import open_images, write_npz
from repa_pipe.pipeline.evaluation import reference_cache
from repa_pipe.pipeline.evaluation.reference_cache import load_reference
from repa_pipe.stores.manifest import record_checksum

CPU = torch.device("cpu")


class MeanColors:
    """A detector that counts the images that it is called with."""

    name, width = "mean-colors", 3

    def __init__(self, version="1"):
        self.fingerprint = {"name": self.name, "version": version}
        self.seen = 0

    def features(self, images):
        self.seen += len(images)
        pooled = images.float().mean((2, 3))
        return Features(pooled, pooled[:, :2], None)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("REPA_PIPE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "references"


@pytest.fixture
def reference(tmp_path):
    return save(tmp_path / "reference.npz", seed=0)


def save(path, seed):
    images = np.random.default_rng(seed).integers(0, 256, (10, 8, 8, 3), dtype=np.uint8)
    write_npz(path, [images], np.zeros(10, np.int64), 8)
    return path


def load(reference, detector=None, batch_size=4):
    detector = detector or MeanColors()
    config = EvaluateConfig(samples="", reference=str(reference), batch_size=batch_size)
    return load_reference(detector, config, 8, CPU), detector.seen


def test_features_of_a_reference_are_computed_once(cache, reference):
    first, seen = load(reference)
    again, seen_again = load(reference, batch_size=3)
    assert (seen, seen_again) == (10, 0)
    assert torch.equal(again.features, first.features)
    assert again.features.data_ptr() % 64 == 0  # as torch aligns it: rounding depends on it
    assert again.count == first.count == again.statistics.count == again.spatial.count == 10
    for name in ("statistics", "spatial"):
        assert torch.equal(getattr(again, name).mean, getattr(first, name).mean)
        assert torch.equal(getattr(again, name).covariance, getattr(first, name).covariance)
    assert torch.equal(again.features, first.features)


def test_images_detector_and_device_determine_the_entry(cache, reference, tmp_path, monkeypatch):
    assert load(reference)[1] == 10
    assert load(reference, MeanColors("2"))[1] == 10
    reference.rename(tmp_path / "moved.npz")
    assert load(tmp_path / "moved.npz")[1] == 0
    assert load(save(reference, seed=1))[1] == 10
    images = open_images(str(reference), 4)
    keys = [reference_cache._key(MeanColors(), images, torch.device(device)) for device in ("cpu", "cuda")]
    assert keys[0] != keys[1]


@pytest.mark.parametrize("place", [40, -40])
def test_a_damaged_file_is_recomputed_and_replaced(cache, reference, caplog, place):
    first, _ = load(reference)
    (path,) = cache.glob("*.safetensors")
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    again, seen = load(reference)
    assert seen == 10
    assert "is damaged" in caplog.text
    assert torch.equal(again.features, first.features)
    assert load(reference)[1] == 0
    path.write_bytes(path.read_bytes()[:-8])
    assert load(reference)[1] == 10


def test_a_cache_that_cannot_be_written_is_only_a_warning(cache, reference, caplog):
    cache.parent.write_text("a file where a folder should be")
    assert load(reference)[1] == 10
    assert "are not cached" in caplog.text


def test_no_temporary_file_is_left(cache, reference):
    load(reference)
    assert [path.suffix for path in cache.iterdir()] == [".safetensors"]


def test_a_folder_is_identified_by_its_images(cache, tmp_path):
    folder = tmp_path / "images"
    (folder / "class").mkdir(parents=True)
    for number in range(3):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / "class" / f"{number}.png")
    assert load(folder)[1] == 3
    assert load(folder)[1] == 0
    Image.new("RGB", (8, 8), (0, 9, 0)).save(folder / "class" / "1.png")
    assert load(folder)[1] == 3


def test_a_store_is_identified_by_the_checksums_of_its_images(cache, make_store, tmp_path):
    path, _ = make_store(num_samples=3)
    images = tmp_path / "images"
    images.mkdir()
    for number in range(3):
        Image.new("RGB", (32, 32), (number, 0, 0)).save(images / f"{number:04d}.png")
    first, second = (open_images(str(path), size, str(images)).content() for size in (2, 3))
    assert first == second
    commit = path / "commits" / "latents" / "tiny" / "00000.json"
    record = json.loads(commit.read_text())
    record["source_crc32c"] = base64.b64encode(bytes(12)).decode()
    del record["crc32c"]
    commit.write_text(json.dumps(record | {"crc32c": record_checksum(record)}))
    assert open_images(str(path), 2, str(images)).content() != first
