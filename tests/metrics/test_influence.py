"""Margins agree with a bootstrap that computes the metric of every draw."""

import numpy as np
import pytest
import torch

from repa_pipe.metrics import (
    FeatureStatistics,
    frechet_distance,
    inception_score,
    kernel_distance,
    mind,
)
from repa_pipe.metrics.influence import (
    frechet_terms,
    inception_terms,
    kernel_terms,
    margin,
    margin_of_fraction,
    mind_terms,
)

WIDTH, COUNT, SPLIT = 3, 400, 150


def draw(seed, count=COUNT):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.standard_normal((count, WIDTH)) @ rng.normal(size=(WIDTH, WIDTH)))


REFERENCE, SAMPLES = draw(0), draw(1) + 0.5
PROBABILITIES = (3 * draw(2)).softmax(1)


def gaussian(features):
    statistics = FeatureStatistics(features.shape[1])
    statistics.update(features)
    return statistics.gaussian()


def frechet(samples):
    one, other = gaussian(REFERENCE), gaussian(samples)
    return frechet_distance(one.mean, one.covariance, other.mean, other.covariance)


CASES = {
    "frechet": (frechet, lambda own: frechet_terms(own, gaussian(own), gaussian(REFERENCE)), SAMPLES),
    "kernel": (lambda own: kernel_distance(REFERENCE, own), lambda own: kernel_terms(REFERENCE, own), SAMPLES),
    "mind": (lambda own: mind(REFERENCE, own), lambda own: mind_terms(REFERENCE, own), SAMPLES),
    "inception": (lambda own: inception_score(own, SPLIT), lambda own: inception_terms(own, SPLIT), PROBABILITIES),
}


@pytest.mark.parametrize(
    ("case", "draws", "tolerance"),
    [("frechet", 600, 0.1), ("kernel", 100, 0.2), ("mind", 60, 0.25), ("inception", 1500, 0.1)],
)
def test_the_margin_is_that_of_a_bootstrap(case, draws, tolerance):
    metric, terms, samples = CASES[case]
    rng = np.random.default_rng(3)
    found = []
    for _ in range(draws):
        sizes = [len(split) for split in samples.split(SPLIT if case == "inception" else COUNT)]
        starts = np.cumsum([0, *sizes[:-1]])  # splits are drawn from themselves
        rows = [start + rng.integers(0, size, size) for start, size in zip(starts, sizes, strict=True)]
        found.append(metric(samples[np.concatenate(rows)]))
    assert margin(terms(samples)) == pytest.approx(1.96 * np.std(found, ddof=1), rel=tolerance)


def test_terms_of_the_distance_are_its_derivatives_by_the_weight_of_a_sample():
    times, few = 200, SAMPLES[:40]
    repeated = few.repeat(times, 1)  # one more of a sample changes its weight little
    terms = frechet_terms(few, gaussian(few), gaussian(REFERENCE))
    for i in (0, 7):
        change = (frechet(torch.cat([repeated, few[i : i + 1]])) - frechet(repeated)) * len(repeated)
        assert float(terms[i] - terms.mean()) == pytest.approx(change, rel=0.05, abs=0.05)


def test_the_margin_of_a_fraction_is_that_of_its_terms():
    inside = torch.tensor([1.0, 0, 0, 1, 1, 0, 1, 1])
    assert margin_of_fraction(5 / 8, 8) == pytest.approx(margin(inside))
    assert margin_of_fraction(1.0, 8) == margin_of_fraction(0.0, 1) == 0


def test_samples_that_vary_in_few_directions_have_a_finite_margin():
    flat = SAMPLES.clone()
    flat[:, 0] = 2
    assert 0 < margin(frechet_terms(flat, gaussian(flat), gaussian(REFERENCE))) < 5
    few = SAMPLES[:3]
    assert np.isfinite(margin(frechet_terms(few, gaussian(few), gaussian(REFERENCE))))


def test_four_times_the_samples_have_half_the_margin():
    many, more = SAMPLES.repeat(4, 1), REFERENCE.repeat(4, 1)
    assert margin(mind_terms(more, many)) == pytest.approx(margin(mind_terms(REFERENCE, SAMPLES)) / 2, rel=0.01)
