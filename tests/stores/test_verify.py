import json
import os
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from repa_pipe.errors import StoreError
from repa_pipe.stores import open_store
from repa_pipe.stores.manifest import Quarantined, record_checksum
from repa_pipe.stores.verify import drop_bad_shards, verify_store

GROUP = "features/enc"
SHARD_SIZE = 16


@pytest.fixture
def store(make_store):
    """A store with two groups, 50 samples in 4 shards."""
    return make_store()[0]


@pytest.fixture
def flip_store(helpers, tmp_path):
    """A store of 40 samples in 3 shards, for tests that damage and restore it many times."""
    path = tmp_path / "store"
    helpers.write_group(path, helpers.new_store(path, 40, SHARD_SIZE), helpers.FEATURES)
    return path


def data_files(path):
    return sorted(file for file in (path / GROUP).glob("*/c/**/*") if file.is_file())


def flip(file, bit):
    with file.open("r+b") as handle:
        handle.seek(bit // 8)
        byte = handle.read(1)[0] ^ 1 << bit % 8
        handle.seek(bit // 8)
        handle.write(bytes([byte]))


def array_and_shard(path, file):
    parts = file.relative_to(path / GROUP).parts
    return parts[0], int(parts[2])


def edit_json(file, change):
    value = json.loads(file.read_text())
    change(value)
    file.write_text(json.dumps(value))


def edit_record(file, change):
    """Change a commit record and update its checksum, as a program with a bug might."""
    edit_json(file, lambda record: (record.pop("crc32c"), change(record)))
    edit_json(file, lambda record: record.update(crc32c=record_checksum(dict(record))))


def only_problem(report):
    assert len(report.problems) == 1, [str(problem) for problem in report.problems]
    return report.problems[0]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=10, deadline=None)
@given(num_samples=st.integers(2, 24), shard_size=st.integers(1, 17), workers=st.integers(1, 4))
def test_an_intact_store_of_any_size_passes(helpers, tmp_path_factory, num_samples, shard_size, workers):
    path = tmp_path_factory.mktemp("sound") / "store"
    manifest = helpers.new_store(path, num_samples, shard_size)
    for spec in (helpers.FEATURES, helpers.LATENTS):
        helpers.write_group(path, manifest, spec)
    seen = []
    report = verify_store(path, workers=workers, progress=lambda done, total: seen.append((done, total)))
    assert report.ok
    assert report.incomplete == {}
    assert report.num_shards == 2 * -(-num_samples // shard_size) == len(seen)
    sizes = sum(file.stat().st_size for file in path.glob("*/*/*/c/**/*") if file.is_file())
    assert report.num_bytes == sizes == seen[-1][0] == seen[-1][1]


@pytest.mark.slow
def test_a_thousand_single_bit_flips_are_all_located(flip_store):
    files = data_files(flip_store)
    assert {array_and_shard(flip_store, file)[0] for file in files} == {"tokens", "cls_token", "crc32c"}
    sizes = {array.name: array.sample_bytes for array in open_store(flip_store).group(GROUP).arrays}
    rng = np.random.default_rng(0)
    for _ in range(1000):
        file = files[rng.integers(len(files))]
        bit = int(rng.integers(8 * file.stat().st_size))
        array, shard = array_and_shard(flip_store, file)
        flip(file, bit)
        report = verify_store(flip_store, [GROUP], workers=1)
        flip(file, bit)
        problem = only_problem(report)
        assert report.bad_shards == [(GROUP, shard)]
        assert (problem.shard, problem.array) == (shard, array)
        row = bit // 8 // sizes[array] if array in sizes else SHARD_SIZE
        if row < min(SHARD_SIZE, 40 - shard * SHARD_SIZE):
            assert problem.sample == shard * SHARD_SIZE + row
            assert problem.key == f"{problem.sample:04d}.png"
        else:
            assert problem.sample is None
    assert verify_store(flip_store).ok


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(
    places=st.sets(st.tuples(st.sampled_from(["tokens", "cls_token"]), st.integers(0, 39)), max_size=6), data=st.data()
)
def test_exactly_the_damaged_samples_are_reported(flip_store, places, data):
    damage = []
    for array, sample in sorted(places):
        shard, row = divmod(sample, SHARD_SIZE)
        size = {"tokens": 16 * 24 * 2, "cls_token": 24 * 2}[array]
        file = flip_store / GROUP / array / "c" / str(shard) / "0" / ("0" if array == "tokens" else "")
        damage.append((file, 8 * row * size + data.draw(st.integers(0, 8 * size - 1))))
    for file, bit in damage:
        flip(file, bit)
    try:
        report = verify_store(flip_store, [GROUP])
    finally:
        for file, bit in damage:
            flip(file, bit)
    assert {(problem.array, problem.sample) for problem in report.problems} == places
    assert {shard for _, shard in report.bad_shards} == {sample // SHARD_SIZE for _, sample in places}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300, deadline=None)
@given(data=st.data())
def test_a_flipped_bit_in_a_commit_record_is_detected(flip_store, data):
    file = flip_store / "commits" / GROUP / "00001.json"
    bit = data.draw(st.integers(0, 8 * file.stat().st_size - 1))
    flip(file, bit)
    try:
        assert verify_store(flip_store, [GROUP], workers=1).bad_shards == [(GROUP, 1)]
    finally:
        flip(file, bit)


def test_a_missing_file_is_reported(store):
    (store / GROUP / "tokens/c/2/0/0").unlink()
    (store / GROUP / "crc32c/c/1/0").unlink()
    report = verify_store(store)
    assert [str(problem) for problem in report.problems] == [
        "features/enc shard 1 crc32c: the file is missing",
        "features/enc shard 2 tokens: the file is missing",
    ]


@pytest.mark.parametrize("array", ["tokens/c/2/0/0", "crc32c/c/2/0"])
@pytest.mark.parametrize("change", [-1, 1, 4096])
def test_a_wrong_file_size_is_reported(store, array, change):
    file = store / GROUP / array
    size = file.stat().st_size
    os.truncate(file, size + change)
    problem = only_problem(verify_store(store))
    assert (problem.group, problem.shard, problem.array) == (GROUP, 2, array.split("/", maxsplit=1)[0])
    assert f"has {size + change:,} bytes, expected {size:,} (commit record)" in problem.what


def test_an_unreadable_file_is_reported(store):
    file = store / GROUP / "tokens/c/0/0/0"
    file.unlink()
    file.symlink_to(file.name)
    problem = only_problem(verify_store(store))
    assert str(problem) == "features/enc shard 0 tokens: the file cannot be read (Too many levels of symbolic links)"


def test_damaged_samples_are_reported_with_their_keys(store):
    flip(store / GROUP / "cls_token/c/1/0", 8 * (5 * 48 + 7))
    assert str(only_problem(verify_store(store))) == (
        "features/enc shard 1 cls_token sample 21 (0021.png): checksum mismatch"
    )


def test_a_damaged_shard_index_is_reported(store):
    file = store / GROUP / "tokens/c/1/0/0"
    flip(file, 8 * (16 * 768 + 21))
    assert str(only_problem(verify_store(store))) == (
        "features/enc shard 1 tokens: the index at the end of the file is damaged"
    )


def test_a_damaged_file_is_detected_without_the_checksums_of_its_samples(store):
    flip(store / GROUP / "tokens/c/1/0/0", 12345)
    (store / GROUP / "crc32c/c/1/0").unlink()
    report = verify_store(store)
    assert {(problem.array, problem.what) for problem in report.problems} == {
        ("crc32c", "the file is missing"),
        ("tokens", "the checksum of the file differs from the commit record"),
    }


def test_swapped_files_of_two_shards_are_detected(store):
    first, second = store / GROUP / "tokens/c/0/0/0", store / GROUP / "tokens/c/1/0/0"
    first.rename(store / "spare")
    second.rename(first)
    (store / "spare").rename(second)
    report = verify_store(store)
    assert {problem.sample for problem in report.problems} == set(range(32))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda commit: commit.update(num_samples=15), "num_samples is 15, expected 16"),
        (lambda commit: commit.update(shard=3), "shard is 3, expected 1"),
        (lambda commit: commit.update(group="features/other"), "group is 'features/other'"),
        (lambda commit: commit["files"].pop("tokens/c/1/0/0"), "files is"),
        (lambda commit: commit.update(files=None), "the commit record is damaged"),
        (lambda commit: commit.pop("time"), "the commit record is damaged"),
        (lambda commit: commit["files"]["tokens/c/1/0/0"].update(crc32c=1.5), "crc32c: expected int, found float"),
        (lambda commit: commit["files"]["tokens/c/1/0/0"].pop("bytes"), "required key 'bytes' is missing"),
        (lambda commit: commit["files"]["crc32c/c/1/0"].update(bytes=4), "bytes of the checksums is 4"),
        (lambda commit: commit.update(source_crc32c="AAAA"), "the commit record is damaged"),
        (lambda commit: commit.update(quarantined=[{"index": 2, "key": "a", "reason": "b"}]), "of another shard"),
        (lambda commit: commit["files"]["tokens/c/1/0/0"].update(crc32c=1), "differs from the commit record"),
    ],
)
def test_an_inconsistent_commit_record_is_damage_of_its_shard(store, change, message):
    edit_record(store / "commits/features/enc/00001.json", change)
    problem = only_problem(verify_store(store))
    assert (problem.group, problem.shard) == (GROUP, 1)
    assert message in problem.what


def test_a_commit_record_with_a_wrong_file_size_is_damage(store):
    file = store / GROUP / "tokens/c/1/0/0"
    os.truncate(file, 4096)
    edit_record(
        store / "commits/features/enc/00001.json", lambda commit: commit["files"]["tokens/c/1/0/0"].update(bytes=4096)
    )
    problem = only_problem(verify_store(store))
    assert (problem.shard, problem.array) == (1, "tokens")
    assert problem.what == "has 4,096 bytes, expected 12,548"


def test_quarantined_samples_are_not_damage(make_store):
    path, _ = make_store(quarantined=(Quarantined(index=20, key="0020.png", reason="truncated"),))
    assert verify_store(path).ok


def test_uncommitted_shards_are_incomplete_and_not_damaged(store):
    (store / "commits/features/enc/00002.json").unlink()
    flip(store / GROUP / "tokens/c/2/0/0", 5)
    report = verify_store(store)
    assert report.ok
    assert report.incomplete == {GROUP: [2]}
    assert report.num_shards == 7


def test_only_the_requested_groups_are_verified(store):
    flip(store / GROUP / "tokens/c/2/0/0", 5)
    assert verify_store(store, ["latents/tiny"]).ok
    assert not verify_store(store, [GROUP]).ok
    with pytest.raises(StoreError, match="has no 'features/other'"):
        verify_store(store, ["features/other"])
    with pytest.raises(StoreError, match="no store at"):
        verify_store(store / "nowhere")


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("tokens/zarr.json", lambda meta: meta.update(data_type="float1")),
        ("tokens/zarr.json", lambda meta: meta.update(data_type="float32")),
        ("tokens/zarr.json", lambda meta: meta["shape"].__setitem__(0, 51)),
        ("tokens/zarr.json", lambda meta: meta["chunk_grid"]["configuration"].update(chunk_shape=[8, 16, 24])),
        ("tokens/zarr.json", lambda meta: meta.pop("codecs")),
        ("crc32c/zarr.json", lambda meta: meta["attributes"].update(arrays=["tokens", "cls_tokem"])),
        ("crc32c/zarr.json", lambda meta: meta.update(attributes=None)),
        ("zarr.json", lambda meta: meta.pop("attributes")),
    ],
)
def test_damaged_metadata_marks_no_shard_as_bad(store, file, change):
    edit_json(store / GROUP / file, change)
    report = verify_store(store)
    assert report.problems
    assert {problem.group for problem in report.problems} == {GROUP}
    assert report.bad_shards == []
    assert drop_bad_shards(store, report) == 0


def test_a_group_without_metadata_is_damage(store):
    shutil.rmtree(store / GROUP)
    problem = only_problem(verify_store(store))
    assert (problem.group, problem.shard) == (GROUP, None)


def test_a_commit_record_without_a_shard_is_reported(store):
    shutil.copy(store / "commits/features/enc/00000.json", store / "commits/features/enc/00004.json")
    problem = only_problem(verify_store(store))
    assert str(problem) == "features/enc: commit record 4 does not belong to a shard"


def test_wrong_labels_are_reported(store, helpers):
    flip(store / "label/c/0", 8 * 4 * 30)
    assert "label/c/0 fails its checksum" in str(only_problem(verify_store(store)))
    helpers.without_digests(store)
    assert str(only_problem(verify_store(store))) == "label sample 30 (0030.png): is 1, expected 0 (samples.parquet)"


@pytest.mark.parametrize("size", [0, 3, 196, 204])
def test_a_wrong_number_of_labels_is_reported(store, size):
    os.truncate(store / "label/c/0", size)
    problem = only_problem(verify_store(store))
    assert problem.array == "label"
    assert problem.shard is None


def test_damaged_metadata_of_the_labels_is_reported(store):
    edit_json(store / "label/zarr.json", lambda meta: meta.update(shape=[49]))
    assert (
        str(only_problem(verify_store(store))) == "label: zarr.json has shape and type [49] int32, expected [50] int32"
    )


def test_a_damaged_sample_index_is_reported_and_samples_are_still_verified(store):
    index = store / "samples.parquet"
    index.write_bytes(index.read_bytes()[:100])
    flip(store / GROUP / "tokens/c/2/0/0", 5)
    first, second = verify_store(store).problems
    assert first.array == "samples.parquet"
    assert (second.sample, second.key) == (32, None)


def test_a_sample_index_with_too_few_rows_is_reported(store, helpers):
    table = pq.read_table(store / "samples.parquet")
    pq.write_table(pa.Table.from_batches(table.slice(0, 49).to_batches()), store / "samples.parquet")
    assert "samples.parquet fails its checksum" in str(only_problem(verify_store(store)))
    helpers.without_digests(store)
    assert "samples.parquet is not a sample index: it has 49 rows, expected 50; restore" in str(
        only_problem(verify_store(store))
    )


def test_dropped_shards_can_be_written_again(helpers, store):
    sound = {file: file.read_bytes() for file in data_files(store)}
    flip(store / GROUP / "tokens/c/1/0/0", 77)
    flip(store / GROUP / "tokens/c/1/0/0", 99999)
    (store / GROUP / "cls_token/c/3/0").unlink()
    (store / "commits/latents/tiny/00000.json").write_text("{")
    report = verify_store(store)
    assert report.bad_shards == [("features/enc", 1), ("features/enc", 3), ("latents/tiny", 0)]
    assert drop_bad_shards(store, report) == 3
    assert not (store / GROUP / "tokens/c/1").exists()
    after = verify_store(store)
    assert after.ok
    assert after.incomplete == {"features/enc": [1, 3], "latents/tiny": [0]}
    helpers.write_group(store, helpers.manifest_of(50, 16), helpers.FEATURES, shards=[1, 3])
    helpers.write_group(store, helpers.manifest_of(50, 16), helpers.LATENTS, shards=[0])
    assert verify_store(store).ok
    assert verify_store(store).incomplete == {}
    assert {file: file.read_bytes() for file in data_files(store)} == sound


def test_a_report_without_problems_drops_nothing(store):
    assert drop_bad_shards(store, verify_store(store)) == 0
    assert verify_store(store).num_shards == 8
