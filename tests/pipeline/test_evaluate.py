"""Metrics of images, with detectors whose results are known."""

import json

import numpy as np
import pytest
from PIL import Image, ImageFilter

from repa_pipe.config import EvaluateConfig
from repa_pipe.errors import ConfigError
from repa_pipe.metrics import Features
from repa_pipe.pipeline import evaluate
from repa_pipe.pipeline.artifacts.images import open_images, write_npz
from repa_pipe.pipeline.evaluation import comparison
from repa_pipe.sources import center_crop
from repa_pipe.sources.demo_images import photographs

DETECTOR = "efficientnet-lite0"


@pytest.fixture(scope="module")
def photos():
    images = []
    for path, _ in photographs():
        with Image.open(path) as image:
            images.append(center_crop(image, 256))
    return np.stack(images)


def save(path, images):
    write_npz(path, [images[:7], images[7:]], np.zeros(len(images), np.int64), images.shape[1])
    return str(path)


def evaluate_images(samples, reference):
    config = EvaluateConfig(samples=samples, reference=reference, detector=(DETECTOR,), device="cpu", batch_size=8)
    return evaluate.run(config)


def test_images_compared_with_themselves_have_distance_0(photos, tmp_path):
    path = save(tmp_path / "a.npz", photos)
    result = evaluate_images(path, path)
    assert result.metrics[f"fd_{DETECTOR}"] == pytest.approx(0, abs=1e-4)
    assert result.metrics[f"precision_{DETECTOR}"] == result.metrics[f"recall_{DETECTOR}"] == 1
    assert (result.num_samples, result.num_reference) == (20, 20)
    assert "20 images for 112 features" in result.warnings[0]
    written = json.loads((tmp_path / "a.metrics.json").read_text())
    assert written["metrics"] == result.metrics
    assert written["detectors"][DETECTOR]["width"] == 112


@pytest.mark.slow
def test_distance_grows_with_blur_and_with_noise(photos, tmp_path):
    reference = save(tmp_path / "reference.npz", photos)
    blurred = [
        np.stack([np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius))) for image in photos])
        for radius in (1, 3)
    ]
    noise = np.random.default_rng(0).standard_normal(photos.shape)
    noisy = [np.clip(photos + scale * noise, 0, 255).astype(np.uint8) for scale in (10, 40)]
    distances = [
        evaluate_images(save(tmp_path / f"{number}.npz", images), reference).metrics[f"fd_{DETECTOR}"]
        for number, images in enumerate([*blurred, *noisy])
    ]
    assert 0 < distances[0] < distances[1]
    assert 0 < distances[2] < distances[3]


class MeanColors:
    """A detector whose three features are the mean color of an image."""

    name, width = "mean-colors", 3
    rule, library = "mean over pixels", "none"
    fingerprint = {"name": name}  # noqa: RUF012

    def features(self, images):
        return Features(images.float().mean((2, 3)), None, None)


def test_the_distance_of_gaussian_features_matches_the_closed_form(tmp_path, monkeypatch):
    monkeypatch.setattr(comparison, "load_detector", lambda *_: MeanColors())
    rng = np.random.default_rng(0)
    means, deviations = np.array([[100, 120, 140], [110, 120, 125]]), np.array([[10, 20, 15], [20, 10, 15]])
    paths = []
    for number in range(2):
        colors = means[number] + deviations[number] * rng.standard_normal((4_000, 1, 1, 3))
        images = np.broadcast_to(np.rint(colors.clip(0, 255)), (4_000, 2, 2, 3)).astype(np.uint8)
        paths.append(save(tmp_path / f"{number}.npz", images))
    config = EvaluateConfig(samples=paths[1], reference=paths[0], device="cpu", batch_size=1000)
    result = evaluate.run(config)
    expected = ((means[0] - means[1]) ** 2).sum() + ((deviations[0] - deviations[1]) ** 2).sum()
    assert result.metrics["fid"] == pytest.approx(expected, rel=0.08)
    assert result.warnings == []


def test_a_folder_gives_the_same_images_as_an_npz(photos, tmp_path):
    folder = tmp_path / "folder"
    (folder / "class").mkdir(parents=True)
    for number, image in enumerate(photos):
        Image.fromarray(image).save(folder / "class" / f"{number:02d}.png")
    from_folder = np.concatenate(list(open_images(str(folder), 6).blocks))
    from_npz = np.concatenate(list(open_images(save(tmp_path / "a.npz", photos), 6).blocks))
    np.testing.assert_array_equal(from_folder, from_npz)


def test_an_npz_without_images_is_refused(photos, tmp_path):
    np.savez(tmp_path / "other.npz", arr_0=np.zeros((3, 8, 9, 3), np.uint8))
    with pytest.raises(ConfigError, match=r"arr_0 is \(3, 8, 9, 3\) uint8, expected images"):
        open_images(str(tmp_path / "other.npz"), 4)
    np.savez(tmp_path / "statistics.npz", mu=np.zeros(3), sigma=np.eye(3))
    with pytest.raises(ConfigError, match="has no array 'arr_0'"):
        open_images(str(tmp_path / "statistics.npz"), 4)
    (tmp_path / "broken.npz").write_bytes(b"PK")
    with pytest.raises(ConfigError, match=r"cannot be read as an \.npz"):
        open_images(str(tmp_path / "broken.npz"), 4)
