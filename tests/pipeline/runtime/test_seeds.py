"""Streams are equal to the expressions that earlier versions drew from: stored results depend on them."""

import numpy as np
import pytest
import torch

from repa_pipe.pipeline.runtime.seeds import Stream, image_generator, image_label, shuffled, step_generator

CPU = torch.device("cpu")
PAIRS = [(0, 0), (0, 1), (1, 0), (7, 399_999), (2**31 - 1, 4_000_000)]


def draws_of(seed):
    return torch.randn(8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("seed", "step"), PAIRS)
def test_a_training_step_draws_from_its_seed_and_number(seed, step):
    plain = torch.randn(8, generator=step_generator(seed, step, CPU))
    assert torch.equal(plain, draws_of((seed << 32) + step))
    class_token = torch.randn(8, generator=step_generator(seed, step, CPU, Stream.CLASS_TOKEN))
    assert torch.equal(class_token, draws_of((seed << 32) + (1 << 31) + step))
    assert not torch.equal(plain, class_token)


@pytest.mark.parametrize(("seed", "index"), PAIRS)
def test_an_image_draws_from_its_seed_and_number(seed, index):
    assert torch.equal(torch.randn(8, generator=image_generator(seed, index)), draws_of((seed << 32) + index))


def test_streams_of_different_seeds_and_steps_do_not_overlap():
    seeds = {step_generator(*pair, CPU, stream).initial_seed() for pair in PAIRS for stream in Stream}
    assert len(seeds) == len(PAIRS) * len(Stream)


@pytest.mark.parametrize(("seed", "index"), PAIRS)
def test_labels_are_raw_philox_output(seed, index):
    raw = np.random.Philox(counter=[0, 0, 0, index], key=seed).random_raw()
    assert image_label(seed, index, 1000) == raw % 1000


def test_labels_never_change():
    assert [image_label(0, index, 1000) for index in range(5)] == [259, 726, 124, 393, 562]
    assert {image_label(0, index, 3) for index in range(20)} == {0, 1, 2}


def test_shuffled_values_are_ordered_by_raw_philox_output():
    values = np.arange(100, 200)
    order = np.argsort(np.random.Philox(key=5).random_raw(100), kind="stable")
    assert np.array_equal(shuffled(values, 5), values[order])


def test_shuffled_values_never_change():
    assert shuffled(np.arange(10), 0).tolist() == [0, 2, 9, 1, 8, 5, 4, 3, 6, 7]
