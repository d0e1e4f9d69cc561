import numpy as np
import pytest
import torch

from repa_pipe.errors import ConfigError
from repa_pipe.metrics import linear_probe


def clusters(count, distance, seed=0, width=16, classes=4):
    rng = np.random.default_rng(seed)
    centers = distance * np.random.default_rng(99).standard_normal((classes, width))
    labels = rng.integers(0, classes, count)
    return (centers[labels] + rng.standard_normal((count, width))).astype(np.float32), labels


def probe(distance, **changes):
    train, train_labels = clusters(400, distance)
    test, test_labels = clusters(200, distance, seed=1)
    return linear_probe(*({"a": train, "b": train_labels, "c": test, "d": test_labels} | changes).values())


def test_distant_classes_are_separated_and_identical_ones_are_at_chance():
    assert probe(5.0) == 1.0
    assert 0.1 < probe(0.0) < 0.4
    assert probe(0.0) < probe(0.3) < probe(1.0)


def test_accuracy_for_two_gaussians_matches_theory():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 40_000)
    features = rng.standard_normal((40_000, 2)) + np.outer(2 * labels - 1, [1.0, 0.0])
    accuracy = linear_probe(features[:20_000], labels[:20_000], features[20_000:], labels[20_000:])
    assert accuracy == pytest.approx(0.8413, abs=0.01)  # the normal CDF at 1


def test_scale_and_offset_of_the_features_do_not_matter():
    train, train_labels = clusters(300, 0.5)
    test, test_labels = clusters(200, 0.5, seed=1)
    scale = np.logspace(-2, 3, train.shape[1]).astype(np.float32)
    plain = linear_probe(train, train_labels, test, test_labels)
    assert linear_probe(train * scale + 7, train_labels, test * scale + 7, test_labels) == pytest.approx(
        plain, abs=0.02
    )


def test_works_under_no_grad_and_with_constant_features():
    train, labels = clusters(100, 5.0)
    train[:, 0] = 3
    with torch.no_grad():
        assert linear_probe(train, labels, train, labels) == 1.0


def test_classes_missing_from_training_are_never_predicted():
    train, labels = clusters(100, 5.0)
    assert linear_probe(train, labels, train, labels + 10) == 0.0


def test_mismatched_labels_and_widths_are_rejected():
    train, labels = clusters(20, 1.0)
    with pytest.raises(ConfigError, match=r"test: 20 features and labels of shape \[19\]"):
        linear_probe(train, labels, train, labels[1:])
    with pytest.raises(ConfigError, match="widths 16 and 15"):
        linear_probe(train, labels, train[:, 1:], labels)
