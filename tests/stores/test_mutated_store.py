"""Every file of a store, with every value dropped, retyped, nested or enlarged: a one-line error or the same result."""

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest

from repa_pipe.pipeline.store_tools import inspection
from repa_pipe.stores import AlignmentDataset, open_store
from repa_pipe.stores.digests import GROUP_DIGEST, ROOT_DIGEST, file_record, root_checksum
from repa_pipe.stores.manifest import record_checksum
from repa_pipe.stores.verify import verify_store

FILES = (
    "zarr.json",
    "label/zarr.json",
    "latents/zarr.json",
    "latents/tiny/zarr.json",
    "latents/tiny/moments/zarr.json",
    "latents/tiny/crc32c/zarr.json",
    "features/enc/zarr.json",
    "features/enc/tokens/zarr.json",
    "features/enc/crc32c/zarr.json",
    "samples.parquet",
    "commits/latents/tiny/00000.json",
    "commits/features/enc/00001.json",
    "label/c/0",
)


def use(path):
    """Open, describe, list, verify and read a store, and take a batch to train on."""
    with open_store(path) as store:
        classes = store.manifest.class_names
        described = inspection.info(str(path)), inspection.list_samples(str(path), None, False, 3)
        verify_store(path, workers=1)
        sample = store[3]
        dataset = AlignmentDataset(store, latents="tiny", encoders=["enc"], batch_size=4)
        batch = dataset.read(dataset.indices_of_step(0))
        arrays = [batch.moments, *batch.patch_tokens, batch.labels, *sample.values()]
        scales = [store.group("latents/tiny").attributes[name] for name in ("scale", "bias")]
        codec = store.group("features/enc").attributes["codec"]
    return classes, described, scales, codec, [np.asarray(array) for array in arrays]


def assert_same(found, expected):
    assert found[:4] == expected[:4]
    for mine, theirs in zip(found[4], expected[4], strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.fixture
def small(helpers, tmp_path):
    path = tmp_path / "store"
    manifest = helpers.new_store(path, 12, 4)
    for spec in (helpers.LATENTS, helpers.FEATURES):
        helpers.write_group(path, manifest, spec)
    return path


def check(path, mutations, count, fix=lambda path, file: None):
    """Put variants of every file in its place. Return the names of those that are used with another result."""
    expected = use(path)
    different = []
    for file in FILES:
        intact = (path / file).read_bytes()
        for name, data in mutations.mutations_of(path / file, count):
            (path / file).write_bytes(data)
            fix(path, file)
            found, error = mutations.survives(lambda: use(path))
            if error is None:
                try:
                    assert_same(found, expected)
                except AssertionError:
                    different.append(f"{file}: {name}")
            restore(path, file, intact)
    return different


def restore(path, file, intact):
    (path / file).write_bytes(intact)
    for backup in path.rglob("*.intact"):
        shutil.move(backup, backup.with_suffix(""))


@pytest.mark.parametrize("count", [8, pytest.param(40, marks=pytest.mark.slow)])
def test_no_change_of_a_file_is_used_silently(small, mutations, count):
    assert check(small, mutations, count) == []


def recomputed(path, file):
    """Give a changed file the checksums that a stranger would give it; do nothing where it cannot be parsed."""
    try:
        meta = json.loads((path / file).read_bytes())
        if file.startswith("commits"):
            values = {name: value for name, value in meta.items() if name != "crc32c"}
            (path / file).write_text(json.dumps(values | {"crc32c": record_checksum(values)}))
            return
        attributes = meta["attributes"]
        if ROOT_DIGEST in attributes:
            attributes[ROOT_DIGEST]["crc32c"] = root_checksum(attributes["repa_pipe"], attributes[ROOT_DIGEST]["files"])
        attributes.pop(GROUP_DIGEST, None)
        (path / file).write_text(json.dumps(meta))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    if file.endswith("/zarr.json") and file.count("/") == 3:  # of an array: its group has the checksum
        drop_digest(path, file)
    if file in ("samples.parquet", "label/c/0"):
        record_file(path, file)


def drop_digest(path, file):
    group = (path / file).parent.parent / "zarr.json"
    shutil.copy(group, group.with_suffix(".json.intact"))
    meta = json.loads(group.read_text())
    del meta["attributes"][GROUP_DIGEST]
    group.write_text(json.dumps(meta))


def record_file(path, file):
    root = path / "zarr.json"
    shutil.copy(root, root.with_suffix(".json.intact"))
    meta = json.loads(root.read_text())
    digest = meta["attributes"][ROOT_DIGEST]
    digest["files"][file] = file_record((path / file).read_bytes())
    digest["crc32c"] = root_checksum(meta["attributes"]["repa_pipe"], digest["files"])
    root.write_text(json.dumps(meta))


@pytest.mark.parametrize("count", [8, pytest.param(40, marks=pytest.mark.slow)])
def test_a_change_with_matching_checksums_is_an_error_or_other_values(small, mutations, count):
    check(small, mutations, count, recomputed)  # raises anything but the package's errors, and for hangs
    assert pq.read_table(small / "samples.parquet").num_rows == 12
