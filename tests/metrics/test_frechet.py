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


@pytest.mark.parametrize(("figure", "suffix"), [("fid", ""), ("sfid", "_spatial")])
def test_agrees_with_the_adm_suite(figure, suffix):
    adm = np.load(REFERENCE / "adm_metrics.npz")
    sides = []
    for name in ("reference", "samples"):
        statistics = FeatureStatistics(adm[name + suffix].shape[1])
        statistics.update(adm[name + suffix])
        sides += [statistics.mean, statistics.covariance]
    assert frechet_distance(*sides) == pytest.approx(float(adm[figure]), abs=1e-3)


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


def test_a_set_is_at_no_distance_from_itself():
    features = draw(0, 200, 32)
    assert distance(features, features) == pytest.approx(0, abs=1e-9)


def test_fewer_images_than_dimensions_give_a_finite_exact_distance():
    a, b = draw(1, 30, 80), draw(2, 50, 80)
    centred_a, centred_b = ((x - x.mean(0)) / np.sqrt(len(x) - 1) for x in (a, b))
    nuclear = np.linalg.svd(centred_a @ centred_b.T, compute_uv=False).sum()  # tr (sigma1 sigma2)^(1/2), no roots
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + (centred_a**2).sum() + (centred_b**2).sum() - 2 * nuclear
    assert distance(a, b) == pytest.approx(expected, rel=1e-7)
    assert distance(a, a) == pytest.approx(0, abs=1e-7)


def test_tensors_and_arrays_of_float32_are_computed_in_float64():
    a, b = draw(3, 100, 8), draw(4, 100, 8)
    arrays = [x.astype(np.float32) for s in (a, b) for x in (s.mean(0), np.cov(s, rowvar=False))]
    expected = frechet_distance(*(x.astype(np.float64) for x in arrays))
    assert frechet_distance(*arrays) == expected
    assert frechet_distance(*(torch.from_numpy(x) for x in arrays)) == expected


@settings(max_examples=25, deadline=None)
@given(
    seeds=st.tuples(st.integers(0, 2**16), st.integers(0, 2**16)), width=st.integers(1, 12), shift=st.floats(-50, 50)
)
def test_symmetric_and_blind_to_a_common_translation(seeds, width, shift):
    a, b = draw(seeds[0], 40, width, 2.0), draw(seeds[1], 30, width)
    there, back, moved = distance(a, b), distance(b, a), distance(a + shift, b + shift)
    assert there >= 0
    assert back == pytest.approx(there, rel=1e-7, abs=1e-9)
    assert moved == pytest.approx(there, rel=1e-7, abs=1e-9)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**16), shift=st.floats(-50, 50), width=st.integers(1, 12))
def test_moving_one_side_adds_the_squared_step(seed, shift, width):
    a = draw(seed, 40, width)
    assert distance(a, a + shift) == pytest.approx(width * shift**2, rel=1e-9, abs=1e-9)


def test_different_widths_are_refused():
    with pytest.raises(ConfigError, match="widths 2 and 3"):
        frechet_distance(np.zeros(2), np.eye(2), np.zeros(3), np.eye(3))


def test_a_covariance_of_the_wrong_shape_is_refused():
    with pytest.raises(ConfigError, match=r"mu2 and sigma2 have shapes \[3\] and \[3, 2\]"):
        frechet_distance(np.zeros(3), np.eye(3), np.zeros(3), np.ones((3, 2)))


def test_numbers_that_are_not_finite_are_refused():
    with pytest.raises(ConfigError, match="mu1 and sigma1 hold NaN"):
        frechet_distance(np.zeros(2), np.array([[1, np.nan], [np.nan, 1]]), np.zeros(2), np.eye(2))
