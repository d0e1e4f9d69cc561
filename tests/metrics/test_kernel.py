import numpy as np
import pytest

from repa_pipe.errors import ConfigError
from repa_pipe.metrics import kernel_distance


def draw(seed, count, width=6, shift=0.0):
    return np.random.default_rng(seed).normal(size=(count, width)) + shift


def by_definition(x, y):
    def k(a, b):
        return (a @ b / len(a) + 1) ** 3

    def among(z):
        return np.mean([k(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j])

    return among(x) + among(y) - 2 * np.mean([k(a, b) for a in x for b in y])


def test_matches_the_definition():
    reference, samples = draw(0, 20), draw(1, 13, shift=0.3)
    assert kernel_distance(reference, samples) == pytest.approx(by_definition(reference, samples), rel=1e-12)


def test_matches_torch_fidelity_with_all_images_as_one_subset():
    torch_fidelity = pytest.importorskip("torch_fidelity.metric_kid")
    torch = pytest.importorskip("torch")
    reference, samples = torch.from_numpy(draw(2, 64)), torch.from_numpy(draw(3, 64, shift=0.2))
    theirs = torch_fidelity.kid_features_to_metric(
        reference, samples, kid_subsets=1, kid_subset_size=64, verbose=False, rng_seed=0
    )
    assert kernel_distance(reference, samples) == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-10)


@pytest.mark.parametrize("block", [1, 5, 16, 100])
def test_block_size_does_not_change_the_result(block):
    reference, samples = draw(4, 40), draw(5, 33)
    assert kernel_distance(reference, samples, block=block) == pytest.approx(
        kernel_distance(reference, samples), rel=1e-10
    )


def test_float32_features_agree_with_float64():
    reference, samples = draw(6, 200), draw(7, 200, shift=0.1)
    single = kernel_distance(reference.astype(np.float32), samples.astype(np.float32))
    assert single == pytest.approx(kernel_distance(reference, samples), abs=1e-6)


def test_estimator_is_unbiased():
    values = [kernel_distance(draw(seed, 30), draw(seed + 1000, 30)) for seed in range(300)]
    assert min(values) < 0
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(len(values))


def test_distance_grows_as_the_sets_move_apart():
    distances = [kernel_distance(draw(8, 100), draw(9, 100, shift=shift)) for shift in (0.2, 0.5, 1.0)]
    assert 0 < distances[0] < distances[1] < distances[2]


def test_single_images_are_rejected():
    with pytest.raises(ConfigError, match="1 reference images and 5 samples"):
        kernel_distance(draw(0, 1), draw(1, 5))
