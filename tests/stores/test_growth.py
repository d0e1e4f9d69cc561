"""Stores of many samples: sets of samples, the order that is computed, and records that are read when needed."""

import json
from itertools import chain, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from repa_pipe.errors import ConfigError, StoreError
from repa_pipe.stores import AlignmentDataset, commit_records, open_store, order
from repa_pipe.stores.manifest import Quarantined
from repa_pipe.stores.order import ArgsortOrder, PermutationOrder, default_order, held_out_samples
from repa_pipe.stores.row_set import RowSet
from repa_pipe.stores.selection import digest_of_rows

NOTHING = np.empty(0, np.int64)
FIRST_PERMUTED = [8, 5, 1, 9, 2, 11, 7, 6, 3, 4, 0, 10]
FIRST_FLIPPED = [False, True, False, True, True, True, True, False]
FIRST_HELD_OUT = [11, 27, 52, 92, 99]


@given(st.lists(st.booleans(), min_size=1, max_size=60), st.data())
def test_a_set_of_samples_is_that_of_its_mask(mask, data):
    mask = np.array(mask)
    rows, expected = RowSet.of_mask(mask), np.flatnonzero(mask)
    other = np.array(data.draw(st.lists(st.integers(0, len(mask) - 1), max_size=9)), dtype=np.int64)
    assert np.asarray(rows).tolist() == expected.tolist()
    assert rows.at(np.arange(len(rows))[::-1]).tolist() == expected[::-1].tolist()
    assert rows.contains(np.arange(len(mask))).tolist() == mask.tolist()
    assert np.asarray(rows.without(other)).tolist() == np.setdiff1d(expected, other).tolist()
    assert rows.count_below(np.arange(len(mask) + 1)).tolist() == [mask[:bound].sum() for bound in range(len(mask) + 1)]
    assert rows.digest == digest_of_rows(expected)
    assert len(rows.listed if rows.listed is not None else rows.excluded) <= len(mask) / 2


@pytest.mark.parametrize("window", [None, 1, 3, 100])
@pytest.mark.parametrize("total", [*range(6, 40), 1000, 4097])
def test_a_computed_order_contains_every_sample_once_however_it_is_cut(total, window):
    rows = RowSet.all_but(total, np.array([5, 2]))
    computed = PermutationOrder(rows, 3, 16, window)
    epoch = computed.samples(1, 0, len(rows))
    assert np.sort(epoch).tolist() == np.asarray(rows).tolist()
    parts = [computed.samples(1, start, min(start + 7, len(rows))) for start in range(0, len(rows), 7)]
    assert np.array_equal(np.concatenate(parts), epoch)


def test_a_computed_order_reads_the_shards_of_a_window_together():
    computed = PermutationOrder(RowSet.all_but(1600, NOTHING), 0, 16, 4)
    shards = computed.samples(0, 0, 1600).reshape(25, 64) // 16
    assert all(len(set(window)) == 4 for window in shards.tolist())
    assert sum(np.diff(np.unique(window)).max() > 1 for window in shards) > 20  # neighbors are in different windows


def test_a_computed_order_is_the_same_for_years():
    computed = PermutationOrder(RowSet.all_but(12, NOTHING), 0, 16, None)
    assert computed.samples(0, 0, 12).tolist() == FIRST_PERMUTED
    assert computed.flipped(0, np.arange(8)).tolist() == FIRST_FLIPPED
    assert held_out_samples(100, 0, 0.05, "permutation").tolist() == FIRST_HELD_OUT


def chi_square(counts):
    expected = counts.sum() / counts.size
    return ((counts - expected) ** 2 / expected).sum()


def test_a_computed_order_is_uniform():
    """Chi-square of positions, of neighbors, of distances and of the same position in successive epochs."""
    count, cells = 40_000, 20
    computed = PermutationOrder(RowSet.all_but(count, NOTHING), 7, 16, None)
    epochs = [computed.samples(epoch, 0, count) * cells // count for epoch in range(5)]
    places = np.arange(count) * cells // count
    pairs = [(places, epochs[0]), (epochs[0][:-1], epochs[0][1:]), *pairwise(epochs)]
    for first, second in pairs:
        counts = np.bincount(first * cells + second, minlength=cells**2)
        assert abs(chi_square(counts) - 400) < 5 * np.sqrt(2 * 400)  # mean and standard deviation for 400 cells
    small = [tuple(PermutationOrder(RowSet.all_but(4, NOTHING), 0, 16, None).samples(e, 0, 4)) for e in range(1200)]
    found = np.unique(small, axis=0, return_counts=True)[1]
    assert len(found) == 24
    assert chi_square(found) < 24 + 5 * np.sqrt(48)


def test_flips_of_a_computed_order_are_half_of_the_samples_and_differ_between_epochs():
    computed = PermutationOrder(RowSet.all_but(100_000, NOTHING), 7, 16, None)
    first, second = (computed.flipped(epoch, np.arange(100_000)) for epoch in (0, 1))
    for share in (first.mean(), second.mean(), (first ^ second).mean(), (first[1:] ^ first[:-1]).mean()):
        assert abs(share - 0.5) < 5 * 0.5 / np.sqrt(100_000)


def test_held_out_samples_of_a_computed_order_grow_with_the_fraction():
    few, more = (held_out_samples(1000, 0, fraction, "permutation") for fraction in (0.1, 0.2))
    assert (len(set(few)), len(set(more))) == (100, 200)
    assert set(few) < set(more)


def test_only_large_stores_have_a_computed_order():
    assert (default_order((1 << 24) - 1), default_order(1 << 24)) == ("argsort", "permutation")


@pytest.fixture
def path(helpers, tmp_path):
    manifest = helpers.new_store(tmp_path / "store", 50, 16)
    bad = (Quarantined(index=20, key="0020.png", reason="broken"),)
    helpers.write_group(tmp_path / "store", manifest, helpers.LATENTS)
    helpers.write_group(tmp_path / "store", manifest, helpers.FEATURES, quarantined=bad)
    return tmp_path / "store"


def dataset_of(path, **options):
    return AlignmentDataset(path, encoders="enc", batch_size=8, **options)


def samples_of(dataset):
    return [dataset.indices_of_step(step).tolist() for step in range(2 * dataset.steps_per_epoch)]


def test_ranks_divide_the_steps_of_a_computed_order(path):
    whole = samples_of(dataset_of(path, order="permutation"))
    parts = [samples_of(dataset_of(path, order="permutation", rank=rank, world_size=2)) for rank in range(2)]
    assert [a + b for a, b in zip(*parts, strict=True)] == whole
    assert all(len(set(chain(*epoch))) == 48 for epoch in (whole[:6], whole[6:]))
    assert 20 not in chain(*whole)


def test_a_dataset_continues_with_the_order_of_its_state(path, monkeypatch):
    old = dataset_of(path).state_dict()
    assert old["order"] == "argsort"
    expected = samples_of(dataset_of(path))
    monkeypatch.setattr(order, "MANY", 50)
    new = dataset_of(path)
    assert (new.order, samples_of(new) == expected) == ("permutation", False)
    for state in (old, {name: value for name, value in old.items() if name != "order"}):  # also of earlier versions
        dataset = dataset_of(path)
        dataset.load_state_dict(state)
        assert samples_of(dataset) == expected
    with pytest.raises(ConfigError, match="order: recorded 'argsort', found 'permutation'"):
        dataset_of(path, order="permutation").load_state_dict(old)
    with pytest.raises(ConfigError, match="order is 'random': expected argsort or permutation"):
        dataset_of(path, order="random")


def test_flips_of_a_computed_order_do_not_depend_on_the_ranks():
    rows = RowSet.all_but(50, NOTHING)
    for kind in (ArgsortOrder, PermutationOrder):
        flips = kind(rows, 0, 16, None)
        assert np.array_equal(flips.flipped(0, np.arange(50))[10:20], flips.flipped(0, np.arange(10, 20)))


def test_records_of_large_groups_are_read_when_their_shard_is(path, monkeypatch):
    monkeypatch.setattr(commit_records, "KEPT", 2)
    read = []
    original = commit_records.read_commit
    monkeypatch.setattr(commit_records, "read_commit", lambda *where: read.append(where[1:]) or original(*where))
    with open_store(path) as store:
        assert store.valid_indices(["latents/tiny", "features/enc"]).tolist() == [*range(20), *range(21, 50)]
        assert read == [("features/enc", 1)]  # only the one that lists an image
        store.read("latents/tiny", [40])
        assert read == [("features/enc", 1), ("latents/tiny", 2)]
        with pytest.raises(StoreError, match=r"sample 20 \(0020.png\) is quarantined"):
            store.read("features/enc", [20])
        assert store.group("features/enc").num_bytes == sum(
            record["bytes"]
            for file in path.glob("commits/features/enc/*.json")
            for record in json.loads(file.read_text())["files"].values()
        )


@pytest.mark.parametrize("content", ["", "{}", None])
def test_a_damaged_record_of_a_large_group_is_refused(path, monkeypatch, content):
    monkeypatch.setattr(commit_records, "KEPT", 2)
    file = path / "commits/latents/tiny/00002.json"
    with open_store(path) as store:
        assert len(store.group("latents/tiny").commits) == 4
        file.write_text(file.read_text().replace('"shard": 2', '"shard": 3') if content is None else content)
        if content is not None:
            with pytest.raises(StoreError, match=r"00002\.json"):
                store.valid_indices("latents/tiny")
        with pytest.raises(StoreError, match=r"00002\.json fails its checksum|00002\.json cannot be read"):
            store.read("latents/tiny", [40])


def test_a_record_that_disappears_is_refused(path, monkeypatch):
    monkeypatch.setattr(commit_records, "KEPT", 2)
    with open_store(path) as store:
        records = store.group("latents/tiny").commits
        (path / "commits/latents/tiny/00002.json").unlink()
        with pytest.raises(StoreError, match=r"00002\.json has disappeared"):
            records[2]
        with pytest.raises(KeyError):
            records[9]


def test_checksums_beyond_the_limit_are_read_again(path, monkeypatch):
    monkeypatch.setattr("repa_pipe.stores.read_checks.KEPT_BYTES", 0)
    with open_store(path, check_reads="every") as store:
        for _ in range(2):
            store.read("latents/tiny", range(50))
        checksums = store._checks["latents/tiny"]["moments"]._checksums
        assert len(checksums._loaded) == 1
        file = path / "latents/tiny/crc32c/c/0/0"
        file.write_bytes(bytes(file.stat().st_size))
        with pytest.raises(StoreError, match="checksums of samples, does not match its commit record"):
            store.read("latents/tiny", [0])


def test_labels_take_the_smallest_type_in_memory_and_are_int32_outside(path):
    with open_store(path) as store:
        assert store._labels.dtype == np.uint8
        assert (store.labels.dtype, store.labels_at(np.array([4])).dtype) == (np.int32, np.int32)
        assert store.labels_at(np.arange(50)).tolist() == store.labels.tolist()
