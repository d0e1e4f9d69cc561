"""Arrays that zarr-python or another program compressed or re-chunked."""

import json
import shutil

import numpy as np
import pytest
import zarr

from repa_pipe.errors import StoreError
from repa_pipe.stores import open_store
from repa_pipe.stores.metadata_writer import record_digests
from repa_pipe.stores.verify import verify_store

NAME = "features/enc/tokens"


def rewrite(path, contents, **how):
    shutil.rmtree(path / NAME)
    root = zarr.open_group(str(path), mode="r+", use_consolidated=False)
    array = root.create_array(NAME, shape=contents[NAME].shape, dtype="float16", **how)
    array[:] = contents[NAME]
    record_digests(path)


@pytest.mark.parametrize(
    "how",
    [
        {"chunks": (1, 16, 24), "shards": (16, 16, 24)},  # zarr's default compressor
        {"chunks": (4, 16, 24), "compressors": None},
        {"chunks": (2, 16, 24), "shards": (8, 16, 24), "compressors": None},
    ],
)
@pytest.mark.filterwarnings("ignore:.*zarrs.*:UserWarning")
def test_rewritten_arrays_read_the_same(make_store, how):
    path, contents = make_store()
    rewrite(path, contents, **how)
    rows = [40, 1, 1, 0, 49, 16]
    with open_store(path) as store:
        got = store.read(["features/enc"], rows)
        assert not store.group("features/enc").shard_indexes["tokens"].layout.plain
    for array in ("tokens", "cls_token"):
        np.testing.assert_array_equal(got[f"features/enc/{array}"], contents[f"features/enc/{array}"][rows])


def test_verify_reports_that_it_cannot_check_rewritten_arrays(make_store):
    path, contents = make_store()
    rewrite(path, contents, chunks=(4, 16, 24))
    problems = [str(problem) for problem in verify_store(path).problems]
    assert len(problems) == 1
    assert "another program rewrote it" in problems[0]


def test_an_array_that_was_rewritten_without_telling_is_refused(make_store):
    path, _ = make_store()
    meta = json.loads((path / NAME / "zarr.json").read_text())
    meta["codecs"][0]["configuration"]["codecs"][0]["configuration"]["endian"] = "big"
    (path / NAME / "zarr.json").write_text(json.dumps(meta))
    with pytest.raises(StoreError, match=r"or that of an array of the group fails its checksum: .*--accept"):
        open_store(path).read(NAME, [0])
    record_digests(path)
    with open_store(path) as store:
        assert not store.group("features/enc").shard_indexes["tokens"].layout.plain
