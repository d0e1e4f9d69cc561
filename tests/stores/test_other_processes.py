"""Batches that are read by other processes: DataLoader workers, and the dataset's reading process."""

import os
import signal

import numpy as np
import pytest
import torch

from repa_pipe.errors import ConfigError, StoreError
from repa_pipe.stores import AlignmentDataset, MapStyleDataset, open_store


@pytest.fixture
def dataset_of(make_store):
    path, contents = make_store()
    opened = []

    def make(**options):
        store = open_store(path)
        options = {"latents": "tiny", "encoders": ["enc"], "batch_size": 8, "cls_tokens": True} | options
        opened.append(AlignmentDataset(store, **options))
        return opened[-1]

    make.path, make.contents = path, contents
    yield make
    for dataset in opened:
        dataset.close()


def assert_holds(batch, contents):
    np.testing.assert_array_equal(batch.moments, contents["latents/tiny/moments"][batch.indices])
    np.testing.assert_array_equal(batch.patch_tokens[0], contents["features/enc/tokens"][batch.indices])
    np.testing.assert_array_equal(batch.cls_tokens[0], contents["features/enc/cls_token"][batch.indices])
    assert batch.labels.tolist() == (batch.indices % 3).tolist()


@pytest.mark.parametrize("start", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_data_loader_receives_batches_from_its_workers(dataset_of, start):
    loader = torch.utils.data.DataLoader(
        MapStyleDataset(dataset_of()),
        batch_size=8,
        shuffle=True,
        num_workers=2,
        collate_fn=MapStyleDataset.collate,
        multiprocessing_context=start,
    )
    batches = list(loader)
    for batch in batches:
        assert_holds(batch, dataset_of.contents)
        assert batch.patch_tokens[0].is_shared()  # passed on without a copy
    assert sorted(np.concatenate([batch.indices for batch in batches]).tolist()) == list(range(50))


def test_the_map_style_dataset_returns_single_samples(dataset_of):
    samples = MapStyleDataset(dataset_of())
    assert len(samples) == 50
    assert_holds(samples[7], dataset_of.contents)


def test_a_reading_process_returns_the_same_batches(dataset_of):
    ours, theirs = dataset_of(process=True), dataset_of()
    for mine, other in zip(ours, theirs, strict=True):
        assert_holds(mine, dataset_of.contents)
        assert mine.indices.tolist() == other.indices.tolist()


def test_a_batch_of_a_reading_process_that_is_still_referenced_does_not_change(dataset_of):
    for batch in list(dataset_of(process=True)):
        assert_holds(batch, dataset_of.contents)


def test_errors_of_the_reading_process_are_raised(dataset_of):
    dataset = dataset_of(process=True)
    next(iter(dataset))
    for file in (dataset_of.path / "features/enc/tokens").rglob("c/*/*/*"):
        file.write_bytes(b"short")
    with pytest.raises(StoreError, match=r"has 5 bytes, expected .* \(commit record\)"):
        dataset_of(process=True).read(np.arange(50))


def test_a_killed_reading_process_is_reported_in_one_line(dataset_of):
    dataset = dataset_of(process=True)
    dataset.read(np.arange(8))
    os.kill(dataset._process._process.pid, signal.SIGKILL)
    with pytest.raises(StoreError, match="process that reads the store has ended"):
        dataset.read(np.arange(8))


def test_a_dataset_with_a_reading_process_cannot_be_pickled(dataset_of):
    with pytest.raises(ConfigError, match="process=True"):
        dataset_of(process=True).__getstate__()
