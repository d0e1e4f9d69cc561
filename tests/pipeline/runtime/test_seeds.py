"""Streams depend on all bits of their key, are distinct and uncorrelated, and never change."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from repa_pipe.config import ProbeConfig, RankConfig, SampleConfig, TrainConfig
from repa_pipe.errors import ConfigError
from repa_pipe.pipeline.runtime.seeds import RandomStreams, Stream, image_label, seed_weights, shuffled

CPU = torch.device("cpu")
PAIRS = [(0, 0), (0, 1), (1, 0), (7, 399_999), (2**31 - 1, 4_000_000)]
SEEDS = [*range(20), 2**31, 2**32, 2**32 + 1, 2**40, 2**62, 2**63 - 1]
INDICES = [*range(60), 49_999, 2**20, 2**30, 2**31, 2**31 + 1, 2**32]

STEP_DRAWS = [-0.877244, -0.964003, -1.026198]
IMAGE_DRAWS = [1.41064, 0.431034, 1.885935]
WEIGHTS_DRAWS = [0.303692, -0.954624, 1.921808]
LABELS = [584, 273, 891, 128, 622]

keys = st.tuples(st.integers(0, 2**63 - 1), st.sampled_from(Stream), st.integers(0, 2**47))


def draws(seed, stream, index, count=8, version=2):
    return torch.randn(count, generator=RandomStreams(seed, version).generator(stream, index, CPU))


def test_thousands_of_streams_are_distinct():
    all_keys = list(itertools.product(SEEDS, Stream, INDICES))
    assert len(all_keys) > 8_000
    assert len({tuple(draws(*key).tolist()) for key in all_keys}) == len(all_keys)


@given(keys, keys)
def test_different_keys_give_different_streams(first, second):
    assert torch.equal(draws(*first), draws(*second)) == (first == second)


@given(keys, st.integers(0, 62))
def test_every_bit_of_the_seed_counts(key, bit):
    seed, stream, index = key
    assert not torch.equal(draws(seed, stream, index), draws(seed ^ (1 << bit), stream, index))


def test_streams_are_not_correlated():
    rows = torch.stack([draws(seed, Stream.IMAGE, i, 4_096) for seed in (0, 1, 2**32) for i in range(60)])
    correlation = torch.corrcoef(rows)
    apart = correlation[~torch.eye(len(rows), dtype=torch.bool)]
    assert apart.abs().max() < 6 / 64  # six standard deviations of independent rows
    assert apart.std() == pytest.approx(1 / 64, rel=0.05)
    assert rows.mean().abs() < 0.01
    assert rows.std() == pytest.approx(1, abs=0.01)


def test_a_cpu_stream_is_numpys_mersenne_twister_in_a_philox_state():
    words = np.random.Philox(key=np.array([7, (1 << 48) + 5], np.uint64)).random_raw(312).view(np.uint32)
    twister = np.random.MT19937()
    twister.state = {"bit_generator": "MT19937", "state": {"key": words, "pos": 624}}
    generator = RandomStreams(7).generator(Stream.STEP, 5, CPU)
    drawn = torch.randint(0, 2**31, (1_000,), generator=generator, dtype=torch.int32)
    assert np.array_equal(drawn.numpy(), twister.random_raw(2_000)[1::2] % 2**31)  # of 64 bits, the low ones


def test_streams_never_change():
    assert draws(3, Stream.STEP, 5, 3).tolist() == pytest.approx(STEP_DRAWS, abs=1e-5)
    assert draws(3, Stream.IMAGE, 5, 3).tolist() == pytest.approx(IMAGE_DRAWS, abs=1e-5)
    seed_weights(3)
    assert torch.randn(3).tolist() == pytest.approx(WEIGHTS_DRAWS, abs=1e-5)


def test_initial_weights_depend_on_all_bits_of_the_seed():
    found = []
    for seed in (0, 1, 2**32, 2**63 - 1):
        seed_weights(seed)
        found.append(tuple(torch.nn.Linear(4, 4).weight.flatten().tolist()))
    assert len(set(found)) == 4


@pytest.mark.parametrize(("seed", "step"), PAIRS)
def test_streams_of_version_1_are_drawn_as_then(seed, step):
    def then(key):
        return torch.randn(8, generator=torch.Generator().manual_seed(key))

    assert torch.equal(draws(seed, Stream.STEP, step, version=1), then((seed << 32) + step))
    assert torch.equal(draws(seed, Stream.CLASS_TOKEN, step, version=1), then((seed << 32) + (1 << 31) + step))
    assert torch.equal(draws(seed, Stream.IMAGE, step, version=1), then((seed << 32) + step))


@pytest.mark.parametrize("seed", [-1, 1 << 63])
@pytest.mark.parametrize(
    ("config", "name"),
    [
        (lambda **seed: TrainConfig(store="store", **seed), "seed"),
        (lambda **seed: SampleConfig(checkpoint="run", **seed), "global_seed"),
        (lambda **seed: ProbeConfig(checkpoint="run", **seed), "seed"),
        (lambda **seed: RankConfig(store="store", **seed), "seed"),
    ],
)
def test_a_seed_that_is_negative_or_too_large_is_refused(config, name, seed):
    expected = r"0 to 2\^63 - 1" if seed < 0 else "an integer of at most 64 bits"
    with pytest.raises(ConfigError, match=rf"{name.replace('_', '-')} is {seed}: expected {expected}"):
        config(**{name: seed})
    config(**{name: (1 << 63) - 1})


def test_labels_never_change():
    assert [image_label(0, index, 1000) for index in range(5)] == LABELS
    assert {image_label(0, index, 3) for index in range(20)} == {0, 1, 2}


def test_labels_are_uniform_and_depend_on_all_bits_of_the_seed():
    labels = np.array([[image_label(seed, index, 10) for index in range(5_000)] for seed in (0, 1, 2**32)])
    assert np.abs(np.apply_along_axis(np.bincount, 1, labels) - 500).max() < 6 * np.sqrt(500)
    assert (labels[0] == labels[1]).mean() == pytest.approx(0.1, abs=0.03)
    assert (labels[0] == labels[2]).mean() == pytest.approx(0.1, abs=0.03)


def test_shuffled_values_are_ordered_by_raw_philox_output():
    values = np.arange(100, 200)
    order = np.argsort(np.random.Philox(key=5).random_raw(100), kind="stable")
    assert np.array_equal(shuffled(values, 5), values[order])


def test_shuffled_values_never_change():
    assert shuffled(np.arange(10), 0).tolist() == [0, 2, 9, 1, 8, 5, 4, 3, 6, 7]
