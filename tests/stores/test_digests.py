"""What a store says about itself is compared with checksums, and the copy of it in the root is kept current."""

import json
import signal
import subprocess
import sys

import pytest
import zarr

from repa_pipe.errors import StoreError
from repa_pipe.sources import index_digest
from repa_pipe.stores import open_store
from repa_pipe.stores.creation import open_or_create_store
from repa_pipe.stores.metadata_writer import copy_is_current, record_digests, set_attributes
from repa_pipe.stores.verify import verify_store

GROUP = "features/enc"
LATENTS = "latents/tiny"
COPY = "lists other groups or attributes than the store has"


def edit(file, change):
    values = json.loads(file.read_text())
    change(values)
    file.write_text(json.dumps(values))


def flip(file, position):
    data = bytearray(file.read_bytes())
    data[position] ^= 1
    file.write_bytes(data)


def of_root(name, value):
    return "zarr.json", lambda meta: meta["attributes"]["repa_pipe"].update({name: value})


def of_group(group, name, value):
    return f"{group}/zarr.json", lambda meta: meta["attributes"].update({name: value})


@pytest.mark.parametrize(
    ("file", "change"),
    [
        of_root("class_names", ["cat", "dof", "owl"]),
        of_root("class_names", ["dog", "cat", "owl"]),
        of_root("resolution", 64),
        of_root("crop", "other"),
        of_root("index_digest", "1" * 64),
        of_root("pixels", "full-range"),
        ("zarr.json", lambda meta: meta["attributes"]["repa_pipe_digest"]["files"]["label/c/0"].update(crc32c=1)),
        of_group(LATENTS, "scale", [1.0, 1.0, 1.0, 1.0000001]),
        of_group(LATENTS, "bias", [0.0, 0.0, 0.5, 0.0]),
        of_group(LATENTS, "fingerprint", {"name": "tinx"}),
        of_group(GROUP, "codec", {"name": "float16", "width": 25}),
        of_group(GROUP, "num_tokens", 8),
        (f"{GROUP}/tokens/zarr.json", lambda meta: meta.update(shape=[50, 24, 16])),
        (f"{GROUP}/tokens/zarr.json", lambda meta: meta.update(data_type="int8")),
        (f"{GROUP}/tokens/zarr.json", lambda meta: meta.update(fill_value=1.0)),
        (f"{GROUP}/crc32c/zarr.json", lambda meta: meta["attributes"].update(arrays=["cls_token", "tokens"])),
    ],
)
def test_a_changed_attribute_is_refused_where_it_is_read(make_store, run_cli, file, change):
    path, _ = make_store()
    edit(path / file, change)
    with pytest.raises(
        StoreError, match=r"zarr.json.* fails its checksum: restore it from a copy, or, if it was changed"
    ):
        for group in (LATENTS, GROUP):
            open_store(path).read(group, [0])
    code, out, errors = run_cli("store", "verify", path)
    assert code
    assert "fails its checksum" in out + errors
    assert "Traceback" not in out + errors


@pytest.mark.parametrize("file", ["label/c/0", "samples.parquet"])
@pytest.mark.parametrize("position", [4, -1])
def test_a_changed_bit_of_labels_or_index_is_refused(make_store, file, position):
    path, _ = make_store()
    flip(path / file, position)
    with open_store(path) as store, pytest.raises(StoreError, match=rf"{file} fails its checksum \([\d,]+ bytes"):
        store[0]


def test_a_store_without_labels_or_index_is_refused(make_store):
    path, _ = make_store()
    for name in ("label/c/0", "samples.parquet"):
        (path / name).unlink()
        with open_store(path) as store, pytest.raises(StoreError, match=rf"{name} cannot be read \(No such file"):
            store[0]


def test_changes_of_attributes_by_our_own_commands_are_recorded(make_store):
    path, _ = make_store()
    set_attributes(path, LATENTS, {"scale": [2.0] * 4})
    with open_store(path) as store:
        assert store.group(LATENTS).attributes["scale"] == [2.0] * 4
        assert store.group(LATENTS).has_digest
    assert copy_is_current(path)
    assert verify_store(path).ok


def test_stores_of_earlier_versions_are_read_and_get_checksums_on_request(helpers, make_store, run_cli):
    path, _ = make_store()
    helpers.without_digests(path)
    code, out, _ = run_cli("store", "verify", path)
    assert code == 0
    assert "metadata, labels and sample index were not checked" in out
    set_attributes(path, LATENTS, {"scale": [2.0] * 4})  # leaves them without
    assert not open_store(path).group(LATENTS).has_digest
    assert not open_store(path).has_digest
    code, out, _ = run_cli("store", "verify", path, "--accept-metadata")
    assert (code, out) == (0, "all committed shards match their checksums\n")
    flip(path / "label/c/0", 0)
    code, out, _ = run_cli("store", "verify", path)
    assert code == 1
    assert "label/c/0 fails its checksum" in out


def test_metadata_that_cannot_be_used_gets_no_checksum(make_store):
    path, _ = make_store()
    edit(path / LATENTS / "zarr.json", lambda meta: meta["attributes"].update(scale="1"))
    with pytest.raises(StoreError, match=r"tiny/zarr.json: attributes: scale: expected array, found str"):
        record_digests(path)


@pytest.mark.parametrize("name", ["repa_pipe_digesu", "repa_pipd"])
def test_a_damaged_name_of_an_attribute_is_not_a_missing_one(make_store, name):
    path, _ = make_store()
    edit(path / "zarr.json", lambda meta: meta["attributes"].update({name: meta["attributes"].pop("repa_pipe_digest")}))
    with pytest.raises(StoreError, match=rf"zarr.json: attributes: unknown key '{name}'; expected repa_pipe"):
        open_store(path)


def test_programs_that_know_no_checksums_see_the_attributes_as_before(helpers, make_store):
    path, _ = make_store()
    attributes = json.loads((path / "zarr.json").read_text())["attributes"]
    with open_store(path) as store:
        assert attributes["repa_pipe"] == store.manifest.as_attributes()["repa_pipe"]
        assert store.group(GROUP).attributes == helpers.FEATURES.attributes
    assert attributes.keys() == {"repa_pipe", "repa_pipe_digest"}


KILL_BEFORE_THE_COPY = """
import os, pathlib, runpy, signal, sys
from repa_pipe.stores import writer
helpers = runpy.run_path(sys.argv[1])
writer.consolidate = lambda store: os.kill(os.getpid(), signal.SIGKILL)
writer.create_group(pathlib.Path(sys.argv[2]), helpers["manifest_of"](50, 16), helpers["FEATURES"])
"""


def test_a_kill_before_the_copy_is_noticed_and_the_next_writer_updates_it(helpers, tmp_path, caplog):
    path = tmp_path / "store"
    manifest = helpers.new_store(path)
    helpers.write_group(path, manifest, helpers.LATENTS)
    script = [sys.executable, "-W", "ignore", "-c", KILL_BEFORE_THE_COPY, helpers.__file__, str(path)]
    assert subprocess.run(script, check=False).returncode == -signal.SIGKILL
    assert GROUP not in zarr.open_group(str(path), mode="r")
    with open_store(path) as store:
        assert store.group_names() == [LATENTS, GROUP]
    assert [record.message for record in caplog.records if COPY in record.message]
    caplog.clear()
    samples = helpers.samples_of(50)
    with open_or_create_store(
        str(path),
        samples,
        index_digest=index_digest(samples),
        resolution=32,
        class_names=manifest.class_names,
        source=manifest.source,
    ):
        assert GROUP in zarr.open_group(str(path), mode="r")
    assert not caplog.records


@pytest.mark.parametrize("change", ["a group is missing", "a group is too many", "attributes differ", "no copy"])
def test_an_old_copy_is_noticed_and_repaired(make_store, run_cli, caplog, change):
    path, _ = make_store()
    assert copy_is_current(path)

    def age(root):
        nodes = root["consolidated_metadata"]["metadata"]
        if change == "a group is missing":
            del nodes[GROUP]
        elif change == "a group is too many":
            nodes["features/other"] = nodes[GROUP]
        elif change == "attributes differ":
            nodes[LATENTS]["attributes"]["scale"] = [2.0] * 4
        else:
            del root["consolidated_metadata"]

    edit(path / "zarr.json", age)
    with open_store(path) as store:
        assert store.group(LATENTS).attributes["scale"] == [1.0] * 4
    assert [record.message for record in caplog.records if COPY in record.message]
    code, out, _ = run_cli("store", "verify", path, "--repair")
    assert (code, out.splitlines()[0]) == (0, "updated the copy of the metadata in zarr.json")
    assert copy_is_current(path)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("latents/tiny/moments/zarr.json", {"shape": [50]}, "shape: expected at least two positive sizes"),
        ("latents/tiny/moments/zarr.json", {"shape": [50, 7, 8, 8]}, r"shape: expected \[N, 2C, h, w\]"),
        (
            "latents/tiny/moments/zarr.json",
            {"shape": [50, 8, 1 << 20, 1 << 20]},
            "shape: expected samples of at most 4 GiB",
        ),
        ("latents/tiny/moments/zarr.json", {"data_type": "float64"}, "data_type: expected one of float32, float16"),
        ("latents/tiny/moments/zarr.json", {"node_type": "group"}, "node_type: expected 'array', found 'group'"),
        ("latents/tiny/crc32c/zarr.json", {"shape": [50, 2]}, r"expected shape \[50, 1\] and data_type uint32"),
        ("latents/tiny/zarr.json", {"zarr_format": 2}, "zarr_format: expected 3, found 2"),
        ("zarr.json", {"attributes": []}, r"attributes: expected object, found \[\]"),
    ],
)
def test_metadata_of_a_store_without_checksums_is_checked_as_well(helpers, make_store, file, change, message):
    path, _ = make_store()
    helpers.without_digests(path)
    edit(path / file, lambda meta: meta.update(change))
    with pytest.raises(StoreError, match=rf"{file}: {message}"):
        open_store(path).read(LATENTS, [0])


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("num_samples", 0, "num_samples: expected at least 1, found 0"),
        ("shard_size", 0, "shard_size: expected at least 1, found 0"),
        ("num_samples", 10**18, "expected at most 16,777,216 shards"),
        ("num_samples", 51, r"label/c/0 has 200 bytes, expected 204"),
        ("class_names", ["cat"], "label/c/0 has labels 0 to 2, expected 0 to 0"),
        ("source", {"kind": "folder"}, "source: path: expected str, found None"),
        ("resolutoin", 3, "unknown key 'resolutoin'; expected resolution"),
    ],
)
def test_impossible_root_attributes_are_refused(helpers, make_store, field, value, message):
    path, _ = make_store()
    helpers.without_digests(path)
    edit(path / "zarr.json", lambda meta: meta["attributes"]["repa_pipe"].update({field: value}))
    with pytest.raises(StoreError, match=message), open_store(path) as store:
        assert len(store.labels)
