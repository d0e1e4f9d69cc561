import json
import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from repa_pipe.errors import StoreError
from repa_pipe.stores import open_store
from repa_pipe.stores.checksum import crc32c
from repa_pipe.stores.files import remove_leftovers
from repa_pipe.stores.writer import ShardWriter, create_group


def files_of(path):
    return sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())


def test_a_failed_shard_leaves_no_files_behind(helpers, tmp_path):
    path = tmp_path / "store"
    manifest = helpers.new_store(path)
    create_group(path, manifest, helpers.FEATURES)
    before = files_of(path)
    arrays = helpers.random_arrays(helpers.FEATURES, 16)
    with pytest.raises(ZeroDivisionError), ShardWriter(path, manifest, helpers.FEATURES, 0) as writer:
        writer.append(arrays)
        raise ZeroDivisionError
    assert files_of(path) == before


def test_a_shard_with_too_few_samples_is_not_committed(helpers, tmp_path):
    path = tmp_path / "store"
    manifest = helpers.new_store(path)
    create_group(path, manifest, helpers.FEATURES)
    with (
        pytest.raises(StoreError, match=r"shard 0 was not committed: expected 16 samples, 3 were written"),
        ShardWriter(path, manifest, helpers.FEATURES, 0) as writer,
    ):
        writer.append(helpers.random_arrays(helpers.FEATURES, 3))
        writer.commit(np.zeros(3, np.uint32), ())
    assert open_store(path).group("features/enc").missing_shards() == [0, 1, 2, 3]


def test_samples_with_a_wrong_shape_or_dtype_are_refused(helpers, tmp_path):
    path = tmp_path / "store"
    manifest = helpers.new_store(path)
    create_group(path, manifest, helpers.FEATURES)
    arrays = helpers.random_arrays(helpers.FEATURES, 4)
    with ShardWriter(path, manifest, helpers.FEATURES, 0) as writer:
        with pytest.raises(StoreError, match=r"\(16, 24\) float16 from the encoder, found \(16, 24\) float32"):
            writer.append(arrays | {"tokens": arrays["tokens"].astype(np.float32)})
        with pytest.raises(StoreError, match=r"from the encoder, found \(8, 24\)"):
            writer.append(arrays | {"tokens": arrays["tokens"][:, :8]})


def test_a_store_is_not_created_in_a_nonempty_folder(helpers, tmp_path):
    (tmp_path / "file.txt").write_text("mine")
    with pytest.raises(StoreError, match="exists and is not empty"):
        helpers.new_store(tmp_path)
    assert files_of(tmp_path) == ["file.txt"]


def test_a_late_writer_does_not_modify_a_committed_shard(helpers, tmp_path):
    path = tmp_path / "store"
    manifest = helpers.new_store(path)
    helpers.write_group(path, manifest, helpers.FEATURES)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    before = [file.read_bytes() for file in files]
    other = {name: array + 1 for name, array in helpers.random_arrays(helpers.FEATURES, 16).items()}
    with ShardWriter(path, manifest, helpers.FEATURES, 1) as writer:
        writer.append(other)
        commit = writer.commit(np.zeros(16, np.uint32), ())
    assert commit == open_store(path).group("features/enc").commits[1]
    assert [file.read_bytes() for file in files] == before
    assert sorted(file for file in path.rglob("*") if file.is_file()) == files


def test_row_checksums_match_the_samples(helpers, make_store):
    import zarr

    path, contents = make_store()
    stored = zarr.open_group(str(path), mode="r")["features/enc/crc32c"][:]
    for i in (0, 15, 16, 49):
        assert stored[i, 0] == crc32c(contents["features/enc/tokens"][i])
        assert stored[i, 1] == crc32c(contents["features/enc/cls_token"][i])


def test_commit_records_contain_size_and_checksum_of_every_file(make_store):
    path, _ = make_store()
    record = json.loads((path / "commits/features/enc/00003.json").read_text())
    assert record["num_samples"] == 2
    assert set(record["files"]) == {"tokens/c/3/0/0", "cls_token/c/3/0", "crc32c/c/3/0"}
    for name, facts in record["files"].items():
        data = np.fromfile(path / "features/enc" / name, np.uint8)
        assert facts == {"bytes": len(data), "crc32c": crc32c(data)}


def test_leftovers_of_killed_writers_are_removed(make_store):
    path, _ = make_store()
    before = files_of(path)
    (path / "features/enc/tokens/c/0/0/0.tmp-host-1-abc").write_bytes(b"half")
    (path / "features/new.tmp-host-1-abc").mkdir()
    assert remove_leftovers(path / "features") == 2
    assert files_of(path) == before


WRITE_SLOWLY = """
import sys, pathlib, runpy
helpers = runpy.run_path(sys.argv[1])
path = pathlib.Path(sys.argv[2])
manifest = helpers["manifest_of"](50, 16)
print("ready", flush=True)
while True:
    helpers["write_group"](path, manifest, helpers["FEATURES"])
"""


def test_a_kill_at_any_moment_leaves_only_complete_shards(helpers, tmp_path):
    path = tmp_path / "store"
    manifest = helpers.new_store(path)
    expected = helpers.random_arrays(helpers.FEATURES, 50)
    create_group(path, manifest, helpers.FEATURES)
    script = [sys.executable, "-c", textwrap.dedent(WRITE_SLOWLY), helpers.__file__, str(path)]
    for delay in (0.001, 0.004, 0.011, 0.017):
        process = subprocess.Popen(script, stdout=subprocess.PIPE)
        process.stdout.readline()
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(delay)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        store = open_store(path)
        missing = set(store.group("features/enc").missing_shards())
        rows = [i for i in range(50) if i // 16 not in missing]
        got = store.read(["features/enc/tokens"], rows)["features/enc/tokens"]
        np.testing.assert_array_equal(got, expected["tokens"][rows])
