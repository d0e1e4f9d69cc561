from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from repa_pipe.errors import ConfigError
from repa_pipe.metrics import FeatureStatistics, frechet_distance

REFERENCE = Path(__file__).parents[1] / "reference"


def distance(a, b):
    sigma_a, sigma_b = (np.atleast_2d(np.cov(features, rowvar=False)) for features in (a, b))
    return frechet_distance(a.mean(0), sigma_a, b.mean(0), sigma_b)


def draw(seed, count, width, scale=1.0):
    return np.random.default_rng(seed).normal(size=(count, width)) * scale


@pytest.mark.parametrize(("metric", "suffix"), [("fid", ""), ("sfid", "_spatial")])
def test_matches_the_adm_suite(metric, suffix):
    adm = np.load(REFERENCE / "adm_metrics.npz")
    sides = []
    for name in ("reference", "samples"):
        statistics = FeatureStatistics(adm[name + suffix].shape[1])
        statistics.update(adm[name + suffix])
        sides += [statistics.mean, statistics.covariance]
    assert frechet_distance(*sides) == pytest.approx(float(adm[metric]), abs=1e-3)


def test_diagonal_gaussians_have_a_closed_form():
    mu1, mu2 = np.array([1.0, -2.0, 0.5]), np.array([0.0, 1.0, 0.5])
    a, b = np.array([4.0, 0.0, 9.0]), np.array([1.0, 2.0, 0.25])
    expected = ((mu1 - mu2) ** 2).sum() + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    assert frechet_distance(mu1, np.diag(a), mu2, np.diag(b)) == pytest.approx(expected, abs=1e-12)


def test_two_by_two_covariances_that_do_not_commute_have_a_closed_form():
    a, b = np.array([[2.0, 0.9], [0.9, 1.0]]), np.array([[0.5, -0.3], [-0.3, 3.0]])
    product = a @ b
    root_trace = np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))
    expected = np.trace(a) + np.trace(b) - 2 * root_trace
    assert frechet_distance(np.zeros(2), a, np.zeros(2), b) == pytest.approx(expected, abs=1e-12)


def test_distance_of_a_set_to_itself_is_zero():
    features = draw(0, 200, 32)
    assert distance(features, features) == pytest.approx(0, abs=1e-9)


def test_distance_is_exact_with_fewer_images_than_dimensions():
    a, b = draw(1, 30, 80), draw(2, 50, 80)
    centered_a, centered_b = ((x - x.mean(0)) / np.sqrt(len(x) - 1) for x in (a, b))
    nuclear = np.linalg.svd(
        centered_a @ centered_b.T, compute_uv=False
    ).sum()  # tr (sigma1 sigma2)^(1/2), without a matrix root
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + (centered_a**2).sum() + (centered_b**2).sum() - 2 * nuclear
    assert distance(a, b) == pytest.approx(expected, rel=1e-7)
    assert distance(a, a) == pytest.approx(0, abs=1e-7)


def test_float32_tensors_and_arrays_are_computed_in_float64():
    a, b = draw(3, 100, 8), draw(4, 100, 8)
    arrays = [x.astype(np.float32) for s in (a, b) for x in (s.mean(0), np.cov(s, rowvar=False))]
    expected = frechet_distance(*(x.astype(np.float64) for x in arrays))
    assert frechet_distance(*arrays) == expected
    assert frechet_distance(*(torch.from_numpy(x) for x in arrays)) == expected


@settings(max_examples=25, deadline=None)
@given(
    seeds=st.tuples(st.integers(0, 2**16), st.integers(0, 2**16)), width=st.integers(1, 12), shift=st.floats(-50, 50)
)
def test_symmetric_and_invariant_to_a_common_translation(seeds, width, shift):
    a, b = draw(seeds[0], 40, width, 2.0), draw(seeds[1], 30, width)
    there, back, moved = distance(a, b), distance(b, a), distance(a + shift, b + shift)
    assert there >= 0
    assert back == pytest.approx(there, rel=1e-7, abs=1e-9)
    assert moved == pytest.approx(there, rel=1e-7, abs=1e-9)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**16), shift=st.floats(-50, 50), width=st.integers(1, 12))
def test_translating_one_set_adds_the_squared_distance(seed, shift, width):
    a = draw(seed, 40, width)
    assert distance(a, a + shift) == pytest.approx(width * shift**2, rel=1e-9, abs=1e-9)


def test_different_widths_are_rejected():
    with pytest.raises(ConfigError, match="widths 2 and 3"):
        frechet_distance(np.zeros(2), np.eye(2), np.zeros(3), np.eye(3))


def test_covariance_of_another_shape_is_rejected():
    with pytest.raises(ConfigError, match=r"mu2 and sigma2 have shapes \[3\] and \[3, 2\]"):
        frechet_distance(np.zeros(3), np.eye(3), np.zeros(3), np.ones((3, 2)))


def test_non_finite_values_are_rejected():
    with pytest.raises(ConfigError, match="mu1 and sigma1 hold NaN"):
        frechet_distance(np.zeros(2), np.array([[1, np.nan], [np.nan, 1]]), np.zeros(2), np.eye(2))
