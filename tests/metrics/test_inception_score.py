from pathlib import Path

import numpy as np
import pytest
import torch

from repa_pipe.errors import ConfigError
from repa_pipe.metrics import inception_score

REFERENCE = Path(__file__).parents[1] / "reference"


def test_matches_the_adm_suite():
    adm = np.load(REFERENCE / "adm_metrics.npz")
    score = inception_score(adm["probabilities"], split_size=int(adm["is_split_size"]))
    assert score == pytest.approx(float(adm["inception_score"]), abs=1e-3)


def test_certain_and_balanced_predictions_score_the_number_of_classes():
    assert inception_score(np.eye(10)) == pytest.approx(10, rel=1e-12)


def test_uniform_predictions_score_one():
    assert inception_score(np.full((20, 10), 0.1)) == pytest.approx(1, rel=1e-12)


def test_splits_are_scored_separately_and_the_last_may_be_smaller():
    one_class, four_classes, two_classes = np.eye(4)[[0] * 4], np.eye(4), np.eye(4)[:2]
    rows = np.concatenate([one_class, four_classes, two_classes])
    assert inception_score(rows, split_size=4) == pytest.approx((1 + 4 + 2) / 3, rel=1e-12)


def test_half_precision_probabilities_are_accepted():
    rows = torch.rand(50, 10, generator=torch.Generator().manual_seed(0)).softmax(1)
    assert inception_score(rows.half()) == pytest.approx(inception_score(rows), abs=1e-3)
    assert inception_score(rows) == inception_score(rows.double())


def test_logits_are_rejected():
    with pytest.raises(ConfigError, match="softmax"):
        inception_score(np.random.default_rng(0).normal(size=(10, 5)))


def test_negative_probabilities_are_rejected():
    with pytest.raises(ConfigError, match="softmax"):
        inception_score(np.array([[1.5, -0.5], [0.5, 0.5]]))


def test_empty_split_is_rejected():
    with pytest.raises(ConfigError, match="split_size=0"):
        inception_score(np.eye(3), split_size=0)
