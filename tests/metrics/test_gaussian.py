import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from repa_pipe.errors import ConfigError
from repa_pipe.metrics import FeatureStatistics, gaussian, load_statistics


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
def test_batches_of_any_size_match_a_single_pass(cuts, seed):
    features = draw(100, 6, seed)
    assert_same(accumulate(*np.split(features, sorted(cuts))), features)


def test_one_long_batch_matches_a_single_pass():
    features = draw(2 * gaussian.BLOCK + 5, 3)
    assert_same(accumulate(features), features)


def test_mean_far_from_the_origin_loses_no_digits():
    features = draw(500, 4).astype(np.float64) + 1e6
    assert_same(accumulate(*np.split(features, 10)), features, tolerance=1e-9)


def test_half_precision_features_are_accumulated_in_float64():
    features = torch.from_numpy(draw(50, 4)).half()
    assert_same(accumulate(features), features.double())


def test_returned_statistics_do_not_change_with_later_updates():
    statistics = accumulate(draw(20, 3))
    before = statistics.gaussian()
    mean = before.mean.clone()
    statistics.update(draw(20, 3, seed=1))
    assert torch.equal(before.mean, mean)


def test_features_of_another_width_are_rejected():
    with pytest.raises(ConfigError, match="width 4 added to statistics of width 3"):
        accumulate(draw(5, 3), draw(5, 4))


def test_non_finite_features_are_rejected():
    features = draw(5, 3)
    features[2, 1] = np.inf
    with pytest.raises(ConfigError, match="NaN or infinite"):
        accumulate(features)


def test_features_of_another_rank_are_rejected():
    with pytest.raises(ConfigError, match=r"shape \[2, 3, 4\]"):
        accumulate(draw(5, 3), np.zeros((2, 3, 4)))


def test_one_image_has_no_covariance():
    with pytest.raises(ConfigError, match="at least 2"):
        _ = accumulate(draw(1, 3)).covariance


def test_file_with_count_and_spatial_part_loads(tmp_path):
    pooled, spatial = accumulate(draw(30, 4)).gaussian(), accumulate(draw(30, 6)).gaussian()
    arrays = {"mu": pooled.mean, "sigma": pooled.covariance, "mu_s": spatial.mean, "sigma_s": spatial.covariance}
    np.savez(tmp_path / "statistics.npz", count=30, **arrays)
    loaded, loaded_spatial = load_statistics(tmp_path / "statistics.npz")
    assert torch.equal(loaded.mean, pooled.mean)
    assert torch.equal(loaded.covariance, pooled.covariance)
    assert torch.equal(loaded_spatial.covariance, spatial.covariance)
    assert loaded.count == 30


def test_statistics_without_count_and_spatial_part_load(tmp_path):
    mu, sigma = np.arange(3, dtype=np.float32), np.eye(3)
    np.savez(tmp_path / "fid.npz", mu=mu, sigma=sigma, arr_0=np.zeros((2, 8, 8, 3), np.uint8))
    pooled, spatial = load_statistics(tmp_path / "fid.npz")
    assert pooled.mean.tolist() == [0, 1, 2]
    assert pooled.mean.dtype == torch.float64
    assert pooled.count is None
    assert spatial is None


def test_missing_file_is_reported(tmp_path):
    with pytest.raises(ConfigError, match=r"nothing\.npz does not exist"):
        load_statistics(tmp_path / "nothing.npz")


def test_file_that_is_not_an_archive_is_reported(tmp_path):
    (tmp_path / "page.npz").write_text("<html>not found</html>")
    with pytest.raises(ConfigError, match=r"page\.npz is not an \.npz file"):
        load_statistics(tmp_path / "page.npz")


def test_truncated_file_is_reported(tmp_path):
    np.savez(tmp_path / "complete.npz", mu=np.zeros(50), sigma=np.eye(50))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "complete.npz").read_bytes()[:9000])
    with pytest.raises(ConfigError, match=r"cut\.npz is not an \.npz file, or is damaged"):
        load_statistics(tmp_path / "cut.npz")


def test_damaged_array_is_reported(tmp_path):
    np.savez(tmp_path / "damaged.npz", mu=np.zeros(50), sigma=np.eye(50))
    data = bytearray((tmp_path / "damaged.npz").read_bytes())
    data[5000] ^= 255
    (tmp_path / "damaged.npz").write_bytes(data)
    with pytest.raises(ConfigError, match=r"damaged\.npz is not an \.npz file, or is damaged"):
        load_statistics(tmp_path / "damaged.npz")


def test_single_array_is_rejected(tmp_path):
    np.save(tmp_path / "array.npy", np.zeros(3))
    with pytest.raises(ConfigError, match="holds a single array"):
        load_statistics(tmp_path / "array.npy")


def test_error_for_an_archive_without_statistics_lists_its_arrays(tmp_path):
    np.savez(tmp_path / "samples.npz", arr_0=np.zeros(3), labels=np.zeros(3))
    with pytest.raises(ConfigError, match="holds arr_0, labels"):
        load_statistics(tmp_path / "samples.npz")


@pytest.mark.parametrize("count", [1, 0, -5, 2.5, [10, 20]])
def test_a_count_that_is_no_number_of_images_is_rejected(tmp_path, count):
    np.savez(tmp_path / "odd.npz", mu=np.zeros(3), sigma=np.eye(3), count=count)
    with pytest.raises(ConfigError, match=r"odd\.npz: count is .*expected the number of images"):
        load_statistics(tmp_path / "odd.npz")


def test_arrays_of_other_shapes_are_rejected(tmp_path):
    np.savez(tmp_path / "odd.npz", mu=np.zeros(3), sigma=np.eye(4))
    with pytest.raises(ConfigError, match=r"mu has shape \[3\] and sigma \[4, 4\]"):
        load_statistics(tmp_path / "odd.npz")
