import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from repa_pipe.errors import ConfigError
from repa_pipe.metrics import cknna


def draw(seed, count=60, width=12):
    return np.random.default_rng(seed).normal(size=(count, width))


def unbiased_hsic(a, b):
    n = len(a)
    a, b = (m - np.diag(np.diag(m)) for m in (a, b))
    ones = np.ones(n)
    return (
        np.trace(a @ b)
        + ones @ a @ ones * (ones @ b @ ones) / ((n - 1) * (n - 2))
        - 2 / (n - 2) * (ones @ a @ b @ ones)
    ) / (n * (n - 3))


def by_definition(a, b, topk):
    def masked(kernel, *others):
        mask = np.ones_like(kernel)
        for other in (kernel, *others):
            for i, row in enumerate(other):
                near = sorted((j for j in range(len(row)) if j != i), key=lambda j, row=row: -row[j])[:topk]
                mask[i, [j for j in range(len(row)) if j not in near]] = 0
        return mask * kernel

    k, m = a @ a.T, b @ b.T
    own = unbiased_hsic(masked(k), masked(k)) * unbiased_hsic(masked(m), masked(m))
    return unbiased_hsic(masked(k, m), masked(m, k)) / (np.sqrt(own) + 1e-6)


@pytest.mark.parametrize("topk", [2, 10])
def test_matches_the_definition(topk):
    a, b = draw(0), draw(0)[:, :5] + 0.3 * draw(1)[:, :5]
    assert cknna(a, b, topk) == pytest.approx(by_definition(a, b, topk), rel=1e-9)


def test_with_all_neighbors_it_is_the_unbiased_cka():
    a, b = draw(2, 30), draw(3, 30)
    k, m = a @ a.T, b @ b.T
    cka = unbiased_hsic(k, m) / np.sqrt(unbiased_hsic(k, k) * unbiased_hsic(m, m))
    assert cknna(a, b, topk=29) == pytest.approx(cka, rel=1e-5)


def test_an_encoder_agrees_with_itself():
    assert cknna(draw(4), draw(4)) == pytest.approx(1, abs=1e-5)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**16), scale=st.floats(1, 50))
def test_invariant_to_rotation_scale_and_a_common_order(seed, scale):
    a = draw(seed)
    b = a[:, :6] + 0.5 * draw(seed + 1)[:, :6]
    rotation = np.linalg.qr(draw(seed + 2, 12))[0]
    order = np.random.default_rng(seed).permutation(len(a))
    expected = cknna(a, b)
    assert cknna(scale * a @ rotation, b) == pytest.approx(expected, abs=1e-5)
    assert cknna(a[order], b[order]) == pytest.approx(expected, abs=1e-9)


def test_shuffled_images_do_not_agree():
    a = draw(5, 200)
    shuffled = a[np.random.default_rng(0).permutation(200)]
    assert abs(cknna(a, shuffled)) < 0.1


def test_more_noise_means_less_agreement():
    a, noise = draw(6, 200), draw(7, 200)
    values = [cknna(a, a + level * noise) for level in (0.1, 0.5, 2.0)]
    assert values[0] > values[1] > values[2]


def test_different_numbers_of_images_are_rejected():
    with pytest.raises(ConfigError, match="60 and 59 images"):
        cknna(draw(0), draw(1, 59))


@pytest.mark.parametrize("topk", [1, 60])
def test_topk_out_of_range_is_rejected(topk):
    with pytest.raises(ConfigError, match=f"topk={topk} with 60 images"):
        cknna(draw(0), draw(1), topk)
