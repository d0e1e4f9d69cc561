from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from repa_pipe.errors import ConfigError
from repa_pipe.metrics import manifold_metrics, precision_recall

REFERENCE = Path(__file__).parents[1] / "reference"


def draw(seed, count, width=8, scale=1.0, dtype=np.float32):
    return (np.random.default_rng(seed).normal(size=(count, width)) * scale).astype(dtype)


def by_definition(reference, samples, k):
    def distances(a, b):
        return ((a[:, None].astype(np.float64) - b[None]) ** 2).sum(-1)

    def inside(points, centers):
        radii = np.sort(distances(centers, centers), axis=1)[:, k]
        return (distances(points, centers) <= radii).any(1).mean()

    return inside(samples, reference), inside(reference, samples)


def test_matches_the_adm_suite():
    adm = np.load(REFERENCE / "adm_metrics.npz")
    result = precision_recall(adm["reference"], adm["samples"])
    assert result.precision == pytest.approx(adm["precision"].item(), abs=5e-3)
    assert result.recall == pytest.approx(adm["recall"].item(), abs=5e-3)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_matches_the_definition(k):
    reference, samples = draw(0, 150), draw(1, 120, scale=0.8)
    assert precision_recall(reference, samples, k=k) == pytest.approx(by_definition(reference, samples, k), abs=1e-12)


def test_balls_are_closed_and_reach_to_the_third_neighbor():
    line = np.arange(10, dtype=np.float64)[:, None]
    touching, beyond = np.full((4, 1), 12.0), np.full((4, 1), 12.001)  # the last point's ball ends at 9 + 3
    assert precision_recall(line, touching) == (1.0, 0.0)
    assert precision_recall(line, beyond) == (0.0, 0.0)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_set_covers_itself(dtype):
    features = draw(2, 100, dtype=dtype)
    assert precision_recall(features, features) == (1.0, 1.0)


def test_collapsed_generator_has_almost_no_recall():
    reference = draw(3, 100)
    collapsed = np.repeat(reference[:1], 50, axis=0)
    assert precision_recall(reference, collapsed) == (1.0, 0.01)
    assert precision_recall(collapsed, collapsed) == (1.0, 1.0)


@pytest.mark.parametrize("block", [1, 2, 7, 64, 1000])
def test_block_size_does_not_change_the_result(block):
    reference, samples = draw(4, 130), draw(5, 90, scale=0.9)
    assert precision_recall(reference, samples, block=block) == precision_recall(reference, samples)


def test_common_offset_loses_no_digits():
    reference, samples = draw(7, 100, dtype=np.float64), draw(8, 80, scale=0.8, dtype=np.float64)
    expected = by_definition(reference, samples, k=3)
    shifted = [(features + 1000).astype(np.float32) for features in (reference, samples)]
    assert precision_recall(*shifted) == pytest.approx(expected, abs=1e-12)


def test_float64_features_are_compared_in_float64():
    reference = draw(6, 60, dtype=np.float64)
    near = reference + 1e-12  # in float32 these would be the same points
    assert precision_recall(reference, near, k=1) == (1.0, 1.0)
    far_apart = np.concatenate([reference * 1e-9, reference * 1e-9 + 1])
    assert precision_recall(far_apart, far_apart[:60] + 1e-7) == (0.0, 0.0)


@settings(max_examples=25, deadline=None)
@given(
    seeds=st.tuples(st.integers(0, 2**16), st.integers(0, 2**16)), shift=st.floats(-1000, 1000), width=st.integers(1, 9)
)
def test_swapping_the_sets_swaps_the_values_and_translation_does_not_matter(seeds, shift, width):
    reference, samples = draw(seeds[0], 40, width, dtype=np.float64), draw(seeds[1], 30, width, dtype=np.float64)
    precision, recall = precision_recall(reference, samples)
    assert precision_recall(samples, reference) == (recall, precision)
    assert precision_recall(reference + shift, samples + shift) == (precision, recall)


def test_too_few_images_are_rejected():
    with pytest.raises(ConfigError, match=r"samples: k=3 with 3 image\(s\)"):
        precision_recall(draw(0, 10), draw(1, 3))
    with pytest.raises(ConfigError, match="k=0"):
        precision_recall(draw(0, 10), draw(1, 10), k=0)


def test_different_widths_are_rejected():
    with pytest.raises(ConfigError, match="widths 8 and 9"):
        precision_recall(draw(0, 10), draw(1, 10, width=9))


def test_non_finite_features_are_rejected():
    broken = draw(1, 10)
    broken[3, 3] = np.nan
    with pytest.raises(ConfigError, match="samples: some features are NaN"):
        precision_recall(draw(0, 10), broken)


@pytest.mark.parametrize("noise", [0, 2e-7])
@pytest.mark.parametrize("copies", [1, 2, 5, 50])
def test_equal_images_are_on_each_others_manifold_whatever_the_rounding(noise, copies):
    generator = torch.Generator().manual_seed(copies)
    features = torch.rand((40, 256), generator=generator).repeat(copies, 1)
    again = features[torch.randperm(len(features), generator=generator)]
    again *= 1 + noise * torch.randn(again.shape, generator=generator)  # as in another batch of a detector
    assert precision_recall(features, again, block=64) == (1, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_collapsed_samples_have_the_recall_of_the_images_that_they_equal(dtype):
    reference = torch.rand((50, 256), generator=torch.Generator().manual_seed(0), dtype=dtype)
    collapsed = reference[:1].repeat(30, 1)
    assert precision_recall(reference, collapsed) == (1, pytest.approx(1 / 50))
    far = collapsed + 100
    assert precision_recall(reference, far) == (0, 0)
    assert precision_recall(collapsed, far) == (0, 0)
    assert precision_recall(collapsed, collapsed[:10]) == (1, 1)


def density_and_coverage(reference, samples, k):
    """Compute both by their definition (Naeem et al. 2020): with open balls, as the authors' package does."""

    def distances(a, b):
        return np.linalg.norm(a[:, None].astype(np.float64) - b[None], axis=-1)

    radii = np.sort(distances(reference, reference), axis=1)[:, k]
    inside = distances(reference, samples) < radii[:, None]
    return inside.sum() / (k * len(samples)), inside.any(1).mean()


@pytest.mark.parametrize("k", [1, 5, 9])
@pytest.mark.parametrize("block", [32, 4096])
def test_density_and_coverage_match_their_definition(k, block):
    reference, samples = draw(10, 150), draw(11, 120, scale=0.6) + np.float32(0.1)
    found, both = manifold_metrics(reference, samples, density_k=k, block=block)
    assert both[:2] == pytest.approx(density_and_coverage(reference, samples, k), abs=1e-12)
    assert found == precision_recall(reference, samples, block=block)
    assert both.density > 1 or k == 1  # unlike precision, it is not bounded


def test_density_and_coverage_tell_few_modes_and_outliers_from_the_reference():
    reference = draw(12, 400, width=4)
    one_mode = reference[:1] + np.float32(1e-3) * draw(13, 200, width=4)
    outliers = np.concatenate([draw(14, 400, width=4), draw(15, 400, width=4) + 50])
    close, half = (manifold_metrics(reference, samples)[1] for samples in (one_mode, outliers))
    assert close.coverage < 0.1
    assert half.density == pytest.approx(0.5, abs=0.07)
    assert half.coverage > 0.9


def test_the_fifth_neighbor_needs_six_images():
    assert manifold_metrics(draw(16, 5), draw(17, 20))[1] is None
    assert manifold_metrics(draw(16, 6), draw(17, 20))[1] is not None


def test_density_and_coverage_of_a_set_against_itself_are_one_with_open_balls():
    features = draw(18, 30, dtype=np.float64)  # no two distances are equal
    assert manifold_metrics(features, features)[1][:2] == (1.0, 1.0)
