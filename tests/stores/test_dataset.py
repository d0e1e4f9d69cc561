import dataclasses
import gc
import json
import os

import numpy as np
import pytest
import torch

from repa_pipe.errors import ConfigError, StoreError
from repa_pipe.stores import AlignmentDataset, MapStyleDataset, open_store
from repa_pipe.stores.buffers import BufferPool
from repa_pipe.stores.manifest import Quarantined
from repa_pipe.stores.order import epoch_flips, epoch_order


@pytest.fixture
def dataset_of(make_store):
    path, contents = make_store(quarantined=(Quarantined(index=17, key="k", reason="r"),))

    def make(**options):
        return AlignmentDataset(open_store(path), latents="tiny", encoders=["enc"], **{"batch_size": 8} | options)

    make.contents = contents
    make.path = path
    return make


def test_a_batch_holds_the_samples_of_its_indices(dataset_of):
    for batch in dataset_of(cls_tokens=True):
        np.testing.assert_array_equal(batch.moments, dataset_of.contents["latents/tiny/moments"][batch.indices])
        np.testing.assert_array_equal(batch.patch_tokens[0], dataset_of.contents["features/enc/tokens"][batch.indices])
        np.testing.assert_array_equal(batch.cls_tokens[0], dataset_of.contents["features/enc/cls_token"][batch.indices])
        assert batch.labels.tolist() == (batch.indices % 3).tolist()


def test_an_epoch_reads_every_valid_sample_at_most_once(dataset_of):
    dataset = dataset_of()
    assert len(dataset) == 6
    first, second = (np.concatenate([batch.indices for batch in dataset]) for _ in range(2))
    assert len(set(first.tolist())) == len(first) == 48
    assert 17 not in first
    assert first.tolist() != second.tolist()


def test_a_batch_can_be_moved_to_a_device(dataset_of):
    dataset = dataset_of(cls_tokens=True)
    batch = dataset.read(dataset.indices_of_step(0))
    moved = batch.to("meta", non_blocking=True)
    assert moved.indices is batch.indices
    assert [tensor.shape for tensor in moved.tensors()] == [tensor.shape for tensor in batch.tensors()]
    assert len(moved.tensors()) == 4
    assert all(tensor.is_meta for tensor in moved.tensors())
    assert moved.token_scales == [None]
    same = batch.to(torch.device("cpu"))
    assert all(torch.equal(mine, other) for mine, other in zip(same.tensors(), batch.tensors(), strict=True))


def test_batches_can_start_at_any_step(dataset_of):
    batches = dataset_of().batches()
    run = [next(batches).indices.tolist() for _ in range(20)]
    batches.close()
    entered = dataset_of().batches(start_step=13)
    assert next(entered).indices.tolist() == run[13]
    entered.close()


def test_ranks_split_the_same_global_batch(dataset_of):
    whole = dataset_of().indices_of_step(7)
    shares = [dataset_of(rank=rank, world_size=4).indices_of_step(7) for rank in range(4)]
    np.testing.assert_array_equal(np.concatenate(shares), whole)


def test_a_batch_that_is_still_referenced_does_not_change(dataset_of):
    dataset = dataset_of()
    kept = [batch for _ in range(3) for batch in dataset]
    for batch in kept:
        np.testing.assert_array_equal(batch.patch_tokens[0], dataset_of.contents["features/enc/tokens"][batch.indices])


def test_buffers_are_reused_after_their_last_view_is_released():
    pool = BufferPool(pin_memory=False)
    array = pool.take((4, 3), np.dtype(np.float16))
    address = array.ctypes.data
    view = torch.from_numpy(array)[1:, 2]
    del array
    gc.collect()
    other = pool.take((4, 3), np.dtype(np.float16))
    assert other.ctypes.data != address
    del view
    gc.collect()
    assert pool.take((4, 3), np.dtype(np.float16)).ctypes.data == address


@pytest.fixture
def aligned_store(helpers, tmp_path):
    """A store with samples of 4,096 bytes, as O_DIRECT requires."""
    from repa_pipe.stores.layout import ArraySpec, GroupSpec

    path = tmp_path / "aligned"
    manifest = helpers.new_store(path)
    latents = GroupSpec(
        path="latents/big",
        arrays=(ArraySpec(name="moments", sample_shape=(8, 16, 8), dtype="float32"),),
        attributes=helpers.LATENTS.attributes,
    )
    return path, helpers.write_group(path, manifest, latents)["moments"]


def test_direct_reads_return_the_same_batches(aligned_store, monkeypatch):
    path, moments = aligned_store
    opened = []
    original = os.open
    monkeypatch.setattr(os, "open", lambda name, flags, *rest: opened.append(flags) or original(name, flags, *rest))
    dataset = AlignmentDataset(open_store(path), latents="big", batch_size=8, direct=True)
    for batch in dataset:
        np.testing.assert_array_equal(batch.moments, moments[batch.indices])
    assert any(flags & os.O_DIRECT for flags in opened)


def test_unaligned_samples_use_the_page_cache(dataset_of):
    for batch in dataset_of(direct=True):
        np.testing.assert_array_equal(batch.patch_tokens[0], dataset_of.contents["features/enc/tokens"][batch.indices])


@pytest.mark.parametrize(
    ("memory", "past_it"),
    [(1 << 30, []), (50 * 4096, [1, 2, 3]), (4 * 16 * 4096, [2, 3]), (8, [0, 1, 2, 3])],
    ids=["all fit", "one shard and a half fit", "two shards fit", "nothing fits"],
)
def test_shards_that_do_not_fit_into_memory_are_read_past_the_page_cache(aligned_store, monkeypatch, memory, past_it):
    path, moments = aligned_store
    opened = {}
    original = os.open
    monkeypatch.setattr(os, "open", lambda name, flags, *rest: opened.update({name: flags}) or original(name, flags))
    monkeypatch.setattr("repa_pipe.stores.memory.usable_memory", lambda: memory)
    for batch in AlignmentDataset(open_store(path), latents="big", batch_size=8):
        np.testing.assert_array_equal(batch.moments, moments[batch.indices])
    found = {str(name): bool(flags & os.O_DIRECT) for name, flags in opened.items() if "/c/" in str(name)}
    assert sorted(int(name.split("/c/")[1].split("/")[0]) for name, direct in found.items() if direct) == past_it


def test_tokens_are_not_read_after_alignment_ends(dataset_of):
    batches = dataset_of(alignment_steps=2).batches()
    tokens = [next(batches).patch_tokens for _ in range(4)]
    batches.close()
    assert [len(token) for token in tokens] == [1, 1, 0, 0]


@pytest.mark.parametrize("cls_tokens", [False, True, "aligned"])
def test_bytes_of_a_sample_are_those_of_the_arrays_in_its_batch(dataset_of, cls_tokens):
    dataset = dataset_of(alignment_steps=1, cls_tokens=cls_tokens)
    for step in range(2):
        batch = dataset[step]
        read = sum(tensor.nbytes for tensor in batch.tensors()) - batch.labels.nbytes
        assert dataset.bytes_per_sample(step) == read // dataset.batch_size


def test_class_tokens_are_read_after_alignment_ends(dataset_of):
    batches = dataset_of(alignment_steps=1, cls_tokens=True).batches()
    read = [next(batches) for _ in range(2)]
    batches.close()
    assert [len(batch.patch_tokens) for batch in read] == [1, 0]
    for batch in read:
        np.testing.assert_array_equal(batch.cls_tokens[0], dataset_of.contents["features/enc/cls_token"][batch.indices])


def test_errors_of_the_prefetching_thread_are_raised(dataset_of):
    dataset = dataset_of()
    for file in dataset_of.path.glob("features/enc/tokens/c/*/0/0"):
        file.write_bytes(b"")
    with pytest.raises(StoreError, match="has 0 bytes"):
        next(dataset.batches())


@pytest.fixture
def flipped_store(helpers, tmp_path):
    """A store with flipped views, and its contents."""
    path = tmp_path / "flipped"
    manifest = helpers.new_store(path)
    contents = {}
    for spec in (helpers.LATENTS, helpers.FEATURES):
        flipped = tuple(dataclasses.replace(array, name=f"{array.name}_flipped") for array in spec.arrays)
        both = dataclasses.replace(spec, arrays=spec.arrays + flipped)
        arrays = helpers.write_group(path, manifest, both)
        contents |= {f"{spec.path}/{name}": array for name, array in arrays.items()}
    return path, contents


def flip_dataset(path, **options):
    return AlignmentDataset(open_store(path), latents="tiny", encoders=["enc"], batch_size=8, flip=True, **options)


def test_flips_change_every_epoch_and_apply_to_every_array_of_a_sample(flipped_store):
    path, contents = flipped_store
    dataset = flip_dataset(path, cls_tokens=True)
    drawn = []
    for epoch in range(2):
        taken = {}
        for step in range(epoch * 6, epoch * 6 + 6):
            flipped = dataset.flipped_of_step(step)
            batch = dataset.read(dataset.indices_of_step(step), flipped=flipped)
            taken |= dict(zip(batch.indices.tolist(), flipped.tolist(), strict=True))
            views = [
                (batch.moments, "latents/tiny/moments"),
                (batch.patch_tokens[0], "features/enc/tokens"),
                (batch.cls_tokens[0], "features/enc/cls_token"),
            ]
            for found, name in views:
                expected = np.where(
                    flipped.reshape(-1, *[1] * (found.ndim - 1)),
                    contents[f"{name}_flipped"][batch.indices],
                    contents[name][batch.indices],
                )
                np.testing.assert_array_equal(found, expected)
        drawn.append(taken)
    assert 12 < sum(drawn[0].values()) < 36
    assert any(drawn[0][index] != drawn[1][index] for index in set(drawn[0]) & set(drawn[1]))


def test_flips_do_not_depend_on_the_number_of_ranks(flipped_store):
    path, _ = flipped_store
    whole = [batch.moments for batch in flip_dataset(path)]
    halves = [[batch.moments for batch in flip_dataset(path, rank=rank, world_size=2)] for rank in range(2)]
    plain = [
        batch.moments for batch in AlignmentDataset(open_store(path), latents="tiny", encoders=["enc"], batch_size=8)
    ]
    for step in range(6):
        assert torch.equal(whole[step], torch.cat([halves[0][step], halves[1][step]]))
    assert not all(torch.equal(with_flips, without) for with_flips, without in zip(whole, plain, strict=True))


def test_flips_are_refused_for_a_store_without_flipped_views(dataset_of):
    with pytest.raises(StoreError, match=r"latents/tiny has no flipped views: create a store with .*--flip"):
        dataset_of(flip=True)


def test_flips_match_the_recorded_ones():
    assert epoch_flips(8, seed=0, epoch=0).tolist() == FIRST_FLIPS
    assert epoch_flips(8, seed=0, epoch=1).tolist() != FIRST_FLIPS
    assert epoch_flips(8, seed=1, epoch=0).tolist() != FIRST_FLIPS


FIRST_FLIPS = [True, False, False, False, False, False, False, True]


def test_the_dataset_opens_the_store_and_closes_it(dataset_of):
    dataset = AlignmentDataset(str(dataset_of.path), encoders="enc", batch_size=8)
    assert (dataset.latents, dataset.features) == ("latents/tiny", ["features/enc"])
    assert dataset[0].patch_tokens[0].shape == (8, 16, 24)
    closed = []
    dataset.store._reader.close = lambda: closed.append(True)
    dataset.close()
    dataset_of().close()
    assert closed == [True]


def test_the_vae_must_be_given_if_the_store_does_not_have_exactly_one(dataset_of, helpers, tmp_path):
    manifest = helpers.new_store(tmp_path / "other")
    with pytest.raises(ConfigError, match=r"latents is not given and .*other has no latents"):
        AlignmentDataset(tmp_path / "other")
    for name in ("latents/a", "latents/b"):
        helpers.write_group(tmp_path / "other", manifest, dataclasses.replace(helpers.LATENTS, path=name))
    with pytest.raises(ConfigError, match=r"latents is not given and .*other has a, b: pass one of them"):
        AlignmentDataset(tmp_path / "other")


def test_a_step_can_be_subscripted(dataset_of):
    dataset = dataset_of(alignment_steps=7)
    batches = dataset.batches()
    for step, expected in zip(range(9), batches, strict=False):
        batch = dataset[step]
        assert batch.indices.tolist() == expected.indices.tolist()
        assert len(batch.patch_tokens) == len(expected.patch_tokens) == (step < 7)
        assert torch.equal(batch.moments, expected.moments)
    batches.close()
    for item in (-1, 0.5, slice(2), "label"):
        with pytest.raises(IndexError, match="expected a step, an integer from 0 on; the 6 steps of an epoch"):
            dataset[item]


def test_batches_of_any_indices_can_be_read(dataset_of):
    batch = dataset_of().read(slice(-2, None))
    assert batch.indices.tolist() == [48, 49]
    np.testing.assert_array_equal(batch.moments, dataset_of.contents["latents/tiny/moments"][-2:])


def test_descriptions_state_groups_sizes_and_the_samples_left_out(dataset_of):
    dataset = dataset_of(rank=1, world_size=2, cls_tokens=True)
    assert repr(dataset) == (
        f"<AlignmentDataset of {dataset_of.path}: latents/tiny, features/enc; 6 batches of 8 per epoch (1 of 49 "
        "samples left out of each), seed 0, rank 1 of 2>"
    )
    assert repr(dataset[0]) == (
        "<Batch of 4 samples: labels int64 [4], moments float32 [4, 8, 8, 8], patch_tokens [float16 [4, 16, 24]], "
        "token_scales [None], cls_tokens [float16 [4, 24]]>"
    )
    assert repr(MapStyleDataset(dataset)) == (
        f"<MapStyleDataset of {dataset_of.path}: 49 samples of latents/tiny, features/enc>"
    )


def assert_same_batches(found, expected):
    assert len(found) == len(expected) > 0
    for mine, other in zip(found, expected, strict=True):
        assert mine.indices.tolist() == other.indices.tolist()
        for tensor, same in zip(mine.tensors(), other.tensors(), strict=True):
            assert torch.equal(tensor, same)


@pytest.mark.parametrize("stop", [0, 1, 4, 6, 9, 12])
def test_a_dataset_resumes_at_the_batch_after_the_last_one(dataset_of, stop):
    whole = run_epochs(dataset_of(), 3)
    interrupted = dataset_of()
    taken = []
    while len(taken) < stop:
        for batch in interrupted:
            taken.append(batch)
            if len(taken) == stop:
                break
    state = json.loads(json.dumps(interrupted.state_dict()))
    resumed = dataset_of()
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    assert_same_batches(run_epochs(resumed, 3)[: 18 - stop], whole[stop:])


def run_epochs(dataset, count):
    return [batch for _ in range(count) for batch in dataset]


def test_an_endless_iteration_resumes_as_well(dataset_of):
    dataset = dataset_of()
    batches = dataset.batches(3)
    for _ in range(5):
        next(batches)
    batches.close()
    resumed = dataset_of(rank=1, world_size=2)
    resumed.load_state_dict(dataset.state_dict())
    continued = resumed.batches()
    assert next(continued).indices.tolist() == dataset.indices_of_step(8)[4:].tolist()
    continued.close()


@pytest.mark.parametrize("change", [{"seed": 1}, {"batch_size": 4}, {"window": 2}])
def test_a_state_of_other_batches_is_refused(dataset_of, change):
    (name, value), state = next(iter(change.items())), dataset_of().state_dict()
    with pytest.raises(ConfigError, match=rf"other batches \({name}: recorded {state[name]}, found {value}\)"):
        dataset_of(**change).load_state_dict(state)
    selected = AlignmentDataset(dataset_of().store.select(classes=[0, 1]), encoders="enc", batch_size=8)
    with pytest.raises(ConfigError, match=r"other batches \(samples: recorded"):
        selected.load_state_dict(state)
    with pytest.raises(ConfigError, match=r"other batches \(it has no step\)"):
        dataset_of().load_state_dict({key: value for key, value in state.items() if key != "step"})


def test_impossible_batch_sizes_are_refused(dataset_of):
    with pytest.raises(ConfigError, match=r"batch size 8 is not divisible by the number of ranks \(3\)"):
        dataset_of(world_size=3)
    with pytest.raises(ConfigError, match="larger than the 49 samples"):
        dataset_of(batch_size=50)


def test_the_order_matches_the_recorded_one():
    assert epoch_order(np.arange(12), seed=0, epoch=0).tolist() == FIRST_ORDER
    assert epoch_order(np.arange(12), seed=0, epoch=1).tolist() != FIRST_ORDER
    assert epoch_order(np.arange(12), seed=1, epoch=0).tolist() != FIRST_ORDER


FIRST_ORDER = [0, 2, 11, 9, 1, 8, 5, 4, 3, 10, 6, 7]


def test_a_windowed_order_uses_few_shards_at_a_time():
    order = epoch_order(np.arange(1000), seed=3, epoch=2, shard_size=50, window=4)
    assert sorted(order.tolist()) == list(range(1000))
    for start in range(0, 1000, 200):
        assert len(set((order[start : start + 200] // 50).tolist())) == 4
    assert order.tolist() != sorted(order.tolist())
