import importlib

import numpy as np
import pytest

from repa_pipe.errors import ConfigError
from repa_pipe.metrics import fdr6, mind, relative_distances
from repa_pipe.metrics.fdr import VALIDATION_FD


def draw(seed, count, width):
    return np.random.default_rng(seed).standard_normal((count, width))


def test_in_one_dimension_mind_is_three_times_the_squared_wasserstein_distance():
    a, b = draw(0, 50, 1), 2 * draw(1, 50, 1) + 3
    expected = 3 * np.square(np.sort(a[:, 0]) - np.sort(b[:, 0])).mean()
    assert mind(a, b) == pytest.approx(expected, rel=1e-6)


def test_a_shift_costs_three_times_its_square_on_average_over_directions():
    a, shift = draw(2, 40, 6), np.array([1.0, -2, 0, 0.5, 3, 1])
    assert mind(a, a + shift, projections=20_000) == pytest.approx(3 * (shift**2).sum(), rel=0.03)


def test_only_the_order_of_the_larger_set_matters(monkeypatch):
    a, b = draw(3, 30, 4), draw(4, 50, 4)
    assert mind(a[::-1].copy(), b) == pytest.approx(mind(a, b), rel=1e-12)
    assert mind(b, a) == pytest.approx(mind(a, b), rel=1e-12)
    assert mind(a, b[::-1].copy()) != pytest.approx(mind(a, b), rel=1e-3)
    assert mind(a, b, seed=1) != pytest.approx(mind(a, b), rel=1e-3)
    before = mind(a, b)
    monkeypatch.setattr(importlib.import_module("repa_pipe.metrics.mind"), "BLOCK", 7)
    assert mind(a, b) == pytest.approx(before, rel=1e-12)


def test_sets_of_other_widths_and_no_directions_are_refused():
    with pytest.raises(ConfigError, match="widths 4 and 5"):
        mind(draw(0, 9, 4), draw(0, 9, 5))
    with pytest.raises(ConfigError, match="projections=0; expected at least 1"):
        mind(draw(0, 9, 4), draw(0, 9, 4), projections=0)


def test_fdr6_of_the_validation_distances_is_one_and_needs_all_six():
    assert fdr6(VALIDATION_FD) == 1
    assert fdr6({**VALIDATION_FD, "another": 3.0}) == 1
    for name in VALIDATION_FD:
        others = {other: value for other, value in VALIDATION_FD.items() if other != name}
        assert fdr6(others) is None
        assert name not in relative_distances(others)
