"""The computed permutation: bijective for every size, different for every key, without visible structure."""

import numpy as np
import pytest
from scipy import stats

from repa_pipe.stores.order import computed_flips, computed_order
from repa_pipe.stores.permutation import ROUNDS, permuted

# of 100 million samples, seed 0, epoch 0: the first positions and flips
RECORDED = [50803116, 21128874, 13426076, 38510035, 93640160]
RECORDED_FLIPS = [1, 1, 1, 1, 1, 1, 0, 1, 0, 1, 0, 1, 1, 0, 1, 0]


def keys_of(seed):
    return np.random.Philox(key=seed).random_raw(ROUNDS)


@pytest.mark.parametrize("count", [*range(1, 40), 255, 256, 257, 1000, 4097, 65_537])
def test_every_number_occurs_once(count):
    for seed in range(3):
        found = permuted(np.arange(count), count, keys_of(seed))
        assert sorted(found.tolist()) == list(range(count))


def test_parts_of_the_permutation_are_those_of_the_whole():
    whole = permuted(np.arange(1000), 1000, keys_of(0))
    np.testing.assert_array_equal(permuted(np.array([7, 999, 7]), 1000, keys_of(0)), whole[[7, 999, 7]])


def test_the_order_never_changes():
    assert computed_order(np.arange(5), 100_000_000, 0, 0).tolist() == RECORDED
    assert computed_flips(np.arange(16), 0, 0).astype(int).tolist() == RECORDED_FLIPS


def test_epochs_and_seeds_have_different_orders():
    orders = [computed_order(np.arange(1000), 1000, seed, epoch) for seed in range(3) for epoch in range(3)]
    same = [np.count_nonzero(one == other) for place, one in enumerate(orders) for other in orders[:place]]
    assert max(same) < 10  # 1 is expected by chance


@pytest.mark.parametrize("count", [5040, 65_536])
def test_samples_are_uniform_over_positions_and_independent_of_their_neighbors(count):
    draws = np.array([permuted(np.arange(64), count, keys_of(seed)) for seed in range(2000)])
    for samples in (draws[:, 0], draws[:, 1], draws[:, 63], (draws[:, 0] - draws[:, 1]) % count):
        bins = np.bincount(samples * 20 // count, minlength=20)
        assert stats.chisquare(bins).pvalue > 1e-4
    pairs = np.histogram2d(draws[:, 3], draws[:, 4], bins=6, range=[[0, count]] * 2)[0]
    assert stats.chi2_contingency(pairs).pvalue > 1e-4
    order = permuted(np.arange(count), count, keys_of(1))
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 4 / np.sqrt(count)


def test_half_of_the_samples_are_mirrored_anew_in_every_epoch():
    first, second = (computed_flips(np.arange(100_000), 5, epoch) for epoch in (0, 1))
    assert abs(first.mean() - 0.5) < 0.01
    assert abs((first == second).mean() - 0.5) < 0.01
