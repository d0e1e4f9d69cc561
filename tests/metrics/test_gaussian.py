import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from repa_pipe.errors import ConfigError
from repa_pipe.metrics import FeatureStatistics, gaussian, load_statistics, save_statistics


def draw(count, width, seed=0):
    return np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)


def accumulate(*batches):
    statistics = FeatureStatistics(batches[0].shape[1])
    for batch in batches:
        statistics.update(batch)
    return statistics


def assert_same(statistics, features, tolerance=1e-12):
    assert statistics.count == len(features)
    features = np.asarray(features, dtype=np.float64)
    np.testing.assert_allclose(statistics.mean, features.mean(0), rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(statistics.covariance, np.cov(features, rowvar=False), rtol=tolerance, atol=tolerance)


@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(1, 99), max_size=6, unique=True), seed=st.integers(0, 2**16))
def test_batches_of_any_size_equal_one_shot(cuts, seed):
    features = draw(100, 6, seed)
    assert_same(accumulate(*np.split(features, sorted(cuts))), features)


def test_one_long_batch_equals_one_shot():
    features = draw(2 * gaussian.BLOCK + 5, 3)
    assert_same(accumulate(features), features)


def test_a_mean_far_from_the_origin_loses_no_digits():
    features = draw(500, 4).astype(np.float64) + 1e6
    assert_same(accumulate(*np.split(features, 10)), features, tolerance=1e-9)


@settings(max_examples=10, deadline=None)
@given(cut=st.integers(1, 59))
def test_merged_halves_equal_the_whole(cut):
    features = draw(60, 5)
    left, right = accumulate(features[:cut]), accumulate(features[cut:])
    left.merge(right)
    assert_same(left, features)
    assert right.count == 60 - cut


def test_merging_into_and_from_empty_statistics_changes_nothing_else():
    features = draw(20, 5)
    empty, full = FeatureStatistics(5), accumulate(features)
    full.merge(FeatureStatistics(5))
    empty.merge(FeatureStatistics(5))
    empty.merge(full)
    assert_same(empty, features)


def test_half_precision_features_are_accumulated_in_float64():
    features = torch.from_numpy(draw(50, 4)).half()
    assert_same(accumulate(features), features.double())


def test_what_was_read_does_not_change_with_later_updates():
    statistics = accumulate(draw(20, 3))
    before = statistics.gaussian()
    mean = before.mean.clone()
    statistics.update(draw(20, 3, seed=1))
    assert torch.equal(before.mean, mean)


def test_features_of_another_width_are_refused():
    with pytest.raises(ConfigError, match="width 4 added to statistics of width 3"):
        accumulate(draw(5, 3), draw(5, 4))
    with pytest.raises(ConfigError, match="width 4 added to statistics of width 3"):
        accumulate(draw(5, 3)).merge(accumulate(draw(5, 4)))


def test_features_that_are_not_finite_are_refused():
    features = draw(5, 3)
    features[2, 1] = np.inf
    with pytest.raises(ConfigError, match="NaN or infinite"):
        accumulate(features)


def test_features_that_are_no_rows_are_refused():
    with pytest.raises(ConfigError, match=r"shape \[2, 3, 4\]"):
        accumulate(draw(5, 3), np.zeros((2, 3, 4)))


def test_one_image_has_no_covariance():
    with pytest.raises(ConfigError, match="at least 2"):
        _ = accumulate(draw(1, 3)).covariance


def test_a_saved_file_holds_what_adm_reads_and_loads_as_it_was(tmp_path):
    pooled, spatial = accumulate(draw(30, 4)).gaussian(), accumulate(draw(30, 6)).gaussian()
    save_statistics(tmp_path / "statistics.npz", pooled, spatial)
    file = np.load(tmp_path / "statistics.npz")
    assert {name: file[name].shape for name in ("mu", "sigma", "mu_s", "sigma_s")} == {
        "mu": (4,),
        "sigma": (4, 4),
        "mu_s": (6,),
        "sigma_s": (6, 6),
    }
    loaded, loaded_spatial = load_statistics(tmp_path / "statistics.npz")
    assert torch.equal(loaded.mean, pooled.mean)
    assert torch.equal(loaded.covariance, pooled.covariance)
    assert torch.equal(loaded_spatial.covariance, spatial.covariance)
    assert loaded.count == 30
    assert [path.name for path in tmp_path.iterdir()] == ["statistics.npz"]


def test_statistics_files_of_others_have_no_count_and_maybe_no_spatial_part(tmp_path):
    mu, sigma = np.arange(3, dtype=np.float32), np.eye(3)
    np.savez(tmp_path / "fid.npz", mu=mu, sigma=sigma, arr_0=np.zeros((2, 8, 8, 3), np.uint8))
    pooled, spatial = load_statistics(tmp_path / "fid.npz")
    assert pooled.mean.tolist() == [0, 1, 2]
    assert pooled.mean.dtype == torch.float64
    assert pooled.count is None
    assert spatial is None


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nothing\.npz: no such file"):
        load_statistics(tmp_path / "nothing.npz")


def test_a_file_that_is_no_archive_is_named(tmp_path):
    (tmp_path / "page.npz").write_text("<html>not found</html>")
    with pytest.raises(ConfigError, match=r"page\.npz: no \.npz file"):
        load_statistics(tmp_path / "page.npz")


def test_a_truncated_file_is_named(tmp_path):
    np.savez(tmp_path / "whole.npz", mu=np.zeros(50), sigma=np.eye(50))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:9000])
    with pytest.raises(ConfigError, match=r"cut\.npz: no \.npz file, or a damaged one"):
        load_statistics(tmp_path / "cut.npz")


def test_a_damaged_array_is_named(tmp_path):
    np.savez(tmp_path / "damaged.npz", mu=np.zeros(50), sigma=np.eye(50))
    data = bytearray((tmp_path / "damaged.npz").read_bytes())
    data[5000] ^= 255
    (tmp_path / "damaged.npz").write_bytes(data)
    with pytest.raises(ConfigError, match=r"damaged\.npz: no \.npz file, or a damaged one"):
        load_statistics(tmp_path / "damaged.npz")


def test_a_single_array_is_refused(tmp_path):
    np.save(tmp_path / "array.npy", np.zeros(3))
    with pytest.raises(ConfigError, match="holds a single array"):
        load_statistics(tmp_path / "array.npy")


def test_an_archive_without_statistics_lists_what_it_holds(tmp_path):
    np.savez(tmp_path / "samples.npz", arr_0=np.zeros(3), labels=np.zeros(3))
    with pytest.raises(ConfigError, match="holds arr_0, labels"):
        load_statistics(tmp_path / "samples.npz")


def test_arrays_of_shapes_that_do_not_fit_are_refused(tmp_path):
    np.savez(tmp_path / "odd.npz", mu=np.zeros(3), sigma=np.eye(4))
    with pytest.raises(ConfigError, match=r"mu has shape \[3\] and sigma \[4, 4\]"):
        load_statistics(tmp_path / "odd.npz")
