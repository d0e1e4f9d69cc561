import json
import multiprocessing
import subprocess
import sys
import threading

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from repa_pipe.errors import StoreError
from repa_pipe.stores import open_store
from repa_pipe.stores.layout import default_shard_size, num_shards, shard_range
from repa_pipe.stores.manifest import Quarantined, record_checksum
from repa_pipe.stores.upload import create_store_at, store_exists


def test_zarr_python_reads_the_same_values_as_our_reader(make_store):
    path, contents = make_store()
    group = zarr.open_group(str(path), mode="r")
    ours = open_store(path).read(["latents/tiny", "features/enc"], range(50))
    for name, expected in contents.items():
        np.testing.assert_array_equal(group[name][:], expected)
        np.testing.assert_array_equal(ours[name], expected)


def test_zarr_python_lists_the_tree_without_a_warning(make_store):
    path, _ = make_store()
    tree = str(zarr.open_group(str(path), mode="r").tree())
    assert "tokens (50, 16, 24) float16" in tree
    assert "moments (50, 8, 8, 8) float32" in tree


def test_labels_are_an_array_of_the_root(make_store):
    path, _ = make_store()
    expected = np.arange(50) % 3
    np.testing.assert_array_equal(zarr.open_group(str(path), mode="r")["label"][:], expected)
    np.testing.assert_array_equal(open_store(path).read(["label"], [4, 1])["label"], expected[[4, 1]])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(indices=st.lists(st.integers(0, 49), max_size=80))
def test_indices_may_be_in_any_order_with_duplicates(read_store, indices):
    store, contents = read_store
    got = store.read(["features/enc"], np.array(indices, dtype=np.int64))
    for array in ("tokens", "cls_token"):
        np.testing.assert_array_equal(got[f"features/enc/{array}"], contents[f"features/enc/{array}"][indices])


@pytest.fixture
def read_store(make_store):
    path, contents = make_store()
    with open_store(path) as store:
        yield store, contents


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None)
@given(num_samples=st.integers(1, 40), shard_size=st.integers(1, 17))
def test_stores_and_shards_of_any_size_can_be_read(helpers, tmp_path_factory, num_samples, shard_size):
    path = tmp_path_factory.mktemp("sizes") / "store"
    manifest = helpers.new_store(path, num_samples, shard_size)
    arrays = helpers.write_group(path, manifest, helpers.FEATURES)
    with open_store(path) as store:
        got = store.read(["features/enc"], range(num_samples))
        plain = zarr.open_group(str(path), mode="r")["features/enc/tokens"][:]
    np.testing.assert_array_equal(got["features/enc/tokens"], arrays["tokens"])
    np.testing.assert_array_equal(plain, arrays["tokens"])


def test_names_complete_groups_and_sizes_of_groups(make_store):
    path, _ = make_store()
    with open_store(path) as store:
        assert (store.vaes, store.encoders) == (("tiny",), ("enc",))
        assert store.complete_groups("latents") == ["latents/tiny"]
        assert store.complete_groups("features") == ["features/enc"]
        files = [file for file in (path / "features/enc").rglob("c/**/*") if file.is_file()]
        assert store.group("features/enc").num_bytes == sum(file.stat().st_size for file in files)
    (path / "commits/features/enc/00001.json").unlink()
    with open_store(path) as store:
        assert store.encoders == ("enc",)
        assert store.complete_groups("features") == []


def test_quarantined_images_of_all_or_some_groups_are_listed(helpers, tmp_path):
    path = tmp_path / "store"
    manifest = helpers.new_store(path)
    first, second = (Quarantined(index=index, key=f"{index:04d}.png", reason="truncated") for index in (17, 40))
    helpers.write_group(path, manifest, helpers.LATENTS, quarantined=(first,))
    helpers.write_group(path, manifest, helpers.FEATURES, quarantined=(first, second))
    with open_store(path) as store:
        assert store.quarantined() == {17: first, 40: second}
        assert store.quarantined(["latents/tiny"]) == {17: first}


@pytest.mark.parametrize("indices", [[-51], [50], [0, 3, 99], [[1, 2]], [0.5], 3])
def test_indices_outside_the_store_are_refused(read_store, indices):
    store, _ = read_store
    with pytest.raises(IndexError, match="indices must"):
        store.read(["features/enc"], indices)


@pytest.mark.parametrize(
    "indices", [slice(5, 40, 7), [-1, 0, -50], np.arange(50) % 4 == 0], ids=["slice", "negative", "mask"]
)
def test_slices_negative_and_boolean_indices_are_those_of_numpy(read_store, indices):
    store, contents = read_store
    got = store.read("features/enc", indices)["features/enc/tokens"]
    np.testing.assert_array_equal(got, contents["features/enc/tokens"][indices])
    np.testing.assert_array_equal(store[indices]["features/enc/tokens"], contents["features/enc/tokens"][indices])


@pytest.mark.parametrize("index", [0, 49, -1, np.int32(7)])
def test_a_sample_is_a_dictionary_of_its_arrays(read_store, index):
    store, contents = read_store
    sample, row = store[index], index % 50
    assert list(sample) == ["index", "key", "label", *contents]
    assert (sample["index"], sample["key"], sample["label"]) == (row, f"{row:04d}.png", row % 3)
    for name, array in contents.items():
        np.testing.assert_array_equal(sample[name], array[row])


def test_several_samples_are_a_dictionary_of_stacked_arrays(read_store):
    store, contents = read_store
    samples = store[[4, 1]]
    assert samples["index"].tolist() == [4, 1]
    assert samples["key"].tolist() == ["0004.png", "0001.png"]
    assert samples["label"].tolist() == [1, 1]
    np.testing.assert_array_equal(samples["latents/tiny/moments"], contents["latents/tiny/moments"][[4, 1]])


def test_iterating_yields_all_samples_but_quarantined_ones(make_store):
    path, _ = make_store(quarantined=(Quarantined(index=17, key="0017.png", reason="truncated"),))
    with open_store(path) as store:
        assert [sample["index"] for sample in store] == [i for i in range(50) if i != 17]
        with pytest.raises(StoreError, match=r"sample 17 \(0017.png\) is quarantined"):
            store[17]


def test_samples_hold_only_the_complete_groups(make_store):
    path, _ = make_store()
    (path / "commits/features/enc/00001.json").unlink()
    with open_store(path) as store:
        assert list(store[0]) == ["index", "key", "label", "latents/tiny/moments"]
        assert repr(store) == (
            f"<Store {path}: 50 samples, 3 classes, 32 px; latents/tiny (complete), features/enc (3 of 4 shards)>"
        )


def test_a_store_without_groups_has_samples(helpers, tmp_path):
    helpers.new_store(tmp_path / "store", num_samples=3)
    with open_store(tmp_path / "store") as store:
        assert [sample["key"] for sample in store] == ["0000.png", "0001.png", "0002.png"]
        assert repr(store).endswith("no groups>")


def test_groups_are_found_by_their_path(read_store):
    store, _ = read_store
    group = store["features/enc"]
    assert group is store.group("features/enc")
    assert repr(group) == (
        f"<Group features/enc of {store.location}: tokens float16 [16, 24], cls_token float16 [24] per "
        "sample; complete>"
    )
    assert "features/enc" in store
    assert "features/other" not in store
    with pytest.raises(StoreError, match=r"has no 'features/other' \(it has latents/tiny, features/enc\)"):
        store["features/other"]


@pytest.mark.parametrize("name", ["label", "features/enc/tokens"])
def test_the_path_of_an_array_says_how_to_read_it(read_store, name):
    with pytest.raises(StoreError, match=rf"{name} is an array, not a group: read it with store.read\(\['{name}'\]"):
        read_store[0][name]


@pytest.mark.parametrize("item", [50, -51, 0.5, None, True, (1, "label"), [[1]]])
def test_other_items_are_refused(read_store, item):
    with pytest.raises(IndexError, match="indices must"):
        read_store[0][item]


def test_a_home_folder_is_expanded(helpers, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    helpers.new_store(tmp_path / "store", num_samples=1)
    with open_store("~/store") as store:
        assert store.path == tmp_path / "store"
    assert store_exists("~/store")
    create_store_at("~/other", store.manifest, helpers.samples_of(1))
    assert (tmp_path / "other/zarr.json").exists()


def test_one_name_may_be_passed_as_a_string(read_store):
    store, _ = read_store
    assert list(store.read("label", [1])) == ["label"]
    assert len(store.valid_indices("features/enc")) == 50
    assert store.quarantined("features/enc") == {}


def test_a_single_array_of_a_group_can_be_read(read_store):
    store, _ = read_store
    assert list(store.read(["features/enc/cls_token"], [1])) == ["features/enc/cls_token"]
    with pytest.raises(StoreError, match="no array 'nothing'"):
        store.read(["features/enc/nothing"], [1])


def test_an_uncommitted_shard_is_refused_and_not_read_as_zeros(make_store):
    path, _ = make_store()
    (path / "commits/features/enc/00001.json").unlink()
    store = open_store(path)
    assert store.read(["features/enc"], [0, 15])
    with pytest.raises(StoreError, match=r"shard 1 of features/enc is not complete"):
        store.read(["features/enc"], [0, 16])
    with pytest.raises(StoreError, match=r"3 of 4 shards: re-run 'repa-pipe encode … --encoder enc'"):
        store.valid_indices(["features/enc"])


def test_quarantined_samples_are_skipped_and_refused(make_store):
    path, _ = make_store(quarantined=(Quarantined(index=17, key="0017.png", reason="truncated"),))
    store = open_store(path)
    assert store.valid_indices(["latents/tiny"]).tolist() == [i for i in range(50) if i != 17]
    with pytest.raises(StoreError, match=r"sample 17 \(0017.png\) is quarantined: truncated"):
        store.read(["features/enc"], [16, 17])


def test_a_truncated_shard_file_is_detected(make_store):
    path, _ = make_store()
    file = path / "features/enc/tokens/c/2/0/0"
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(StoreError, match=r"tokens/c/2/0/0 has .* bytes, expected .* \(commit record\)"):
        open_store(path).read(["features/enc"], [33])


def test_a_damaged_shard_index_is_detected(make_store):
    path, _ = make_store()
    file = path / "features/enc/tokens/c/2/0/0"
    data = bytearray(file.read_bytes())
    data[-20] ^= 1
    file.write_bytes(data)
    with pytest.raises(StoreError, match="index fails its checksum"):
        open_store(path).read(["features/enc"], [33])


def test_missing_stores_and_groups_are_reported(tmp_path, make_store):
    with pytest.raises(StoreError, match="no store at"):
        open_store(tmp_path / "nowhere")
    path, _ = make_store()
    with pytest.raises(StoreError, match=r"has no 'features/dinov2-vit-b' \(it has latents/tiny, features/enc\)"):
        open_store(path).read(["features/dinov2-vit-b"], [0])


def test_a_foreign_zarr_group_is_refused(tmp_path):
    zarr.create_group(store=str(tmp_path / "other"))
    with pytest.raises(StoreError, match="not a repa-pipe store"):
        open_store(tmp_path / "other")


def test_threads_can_read_concurrently(read_store):
    store, contents = read_store
    failures = []

    def work(seed):
        rng = np.random.default_rng(seed)
        for _ in range(20):
            indices = rng.integers(0, 50, 16)
            got = store.read(["features/enc/tokens"], indices)["features/enc/tokens"]
            if not np.array_equal(got, contents["features/enc/tokens"][indices]):
                failures.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def _read_in_child(store, connection):
    connection.send(store.read(["features/enc/tokens"], [3, 40])["features/enc/tokens"])


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_store_can_be_read_before_and_after_a_fork(read_store):
    store, contents = read_store
    store.read(["features/enc/tokens"], [0])
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=_read_in_child, args=(store, theirs))
    child.start()
    assert ours.poll(20)
    np.testing.assert_array_equal(ours.recv(), contents["features/enc/tokens"][[3, 40]])
    child.join()


def test_more_shards_than_open_files_can_be_read(make_store, monkeypatch):
    from repa_pipe.stores import reader

    monkeypatch.setattr(reader.FileDescriptorCache.__init__, "__defaults__", (3,))
    path, contents = make_store(shard_size=4)
    store = open_store(path)
    for _ in range(2):
        got = store.read(["features/enc/tokens"], range(50))["features/enc/tokens"]
        np.testing.assert_array_equal(got, contents["features/enc/tokens"])
    assert len(store._reader._descriptors._open) <= 4
    store.read(["features/enc/tokens"], [0])
    assert len(store._reader._descriptors._open) <= 3


@pytest.mark.parametrize(
    ("num_samples", "size"),
    [(1, 16), (5000, 512), (1_281_167, 1024), (1 << 23, 1024), ((1 << 23) + 1, 2048), (100_000_000, 16384)],
)
def test_a_store_has_at_most_8192_shards_by_default(num_samples, size):
    assert default_shard_size(num_samples) == size
    assert num_shards(num_samples, size) <= 8192


@given(st.integers(1, 3_000_000))
def test_default_shards_cover_every_sample_once(num_samples):
    size = default_shard_size(num_samples)
    count = num_shards(num_samples, size)
    assert 16 <= size <= 1024
    assert shard_range(count - 1, num_samples, size).stop == num_samples
    assert sum(len(shard_range(shard, num_samples, size)) for shard in range(count)) == num_samples


def test_labels_that_are_all_zero_are_stored(helpers, tmp_path):
    helpers.new_store(tmp_path / "store", num_samples=1)
    assert open_store(tmp_path / "store").labels.tolist() == [0]


@pytest.mark.parametrize("field", ["num_samples", "format_version"])
def test_root_attributes_without_a_field_are_reported_in_one_line(make_store, field):
    path, _ = make_store()
    meta = json.loads((path / "zarr.json").read_text())
    del meta["attributes"]["repa_pipe"][field]
    (path / "zarr.json").write_text(json.dumps(meta))
    with pytest.raises(StoreError, match=r"zarr.json|store format None"):
        open_store(path)


def test_a_commit_record_without_a_field_is_reported_in_one_line(make_store):
    path, _ = make_store()
    record = path / "commits/features/enc/00001.json"
    values = json.loads(record.read_text())
    del values["files"], values["crc32c"]
    record.write_text(json.dumps(values | {"crc32c": record_checksum(values)}))
    with pytest.raises(StoreError, match=r"00001.json: required key 'files' is missing; delete it and re-run"):
        open_store(path).read(["features/enc"], [0])


READ_ALL = """
import resource, sys, threading
import numpy as np
from repa_pipe.stores import open_store
store = open_store(sys.argv[1])
names, rows = ["latents/tiny", "features/enc"], np.arange(len(store))
store.read(names, rows[:1])
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[2]), int(sys.argv[2])))
store = open_store(sys.argv[1])
def read():
    found.append(sum(float(array.sum()) for array in store.read(names, rows).values()))
for count in (1, 2):
    found = []
    threads = [threading.Thread(target=read) for _ in range(count)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    print(*found)
"""


def test_a_batch_from_more_files_than_may_be_open_is_read(make_store):
    path, contents = make_store(40, 1)  # 120 files
    done = subprocess.run([sys.executable, "-c", READ_ALL, path, "64"], capture_output=True, text=True, check=True)
    expected = sum(float(array.sum()) for array in contents.values())
    assert [float(word) for word in done.stdout.split()] == pytest.approx([expected] * 3)


def test_a_store_that_is_moved_while_it_is_read_is_named(make_store, tmp_path):
    path, _ = make_store()
    with open_store(path) as store:
        store.read(["features/enc"], [0])
        path.rename(tmp_path / "elsewhere")
        store.read(["features/enc"], [1])  # its files are open
        with pytest.raises(
            StoreError, match=r"store was moved or deleted while it was read \(.*/features/enc/.*\): restore it"
        ):
            store.read(["features/enc"], [40])
