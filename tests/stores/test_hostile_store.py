"""Stores made to escape from their folder: names, paths and symbolic links that lead elsewhere."""

import functools
import http.server
import json
import os
import threading

import numpy as np
import pytest

from repa_pipe.errors import StoreError
from repa_pipe.pipeline.store_tools import export
from repa_pipe.stores import open_store
from repa_pipe.stores.digests import GROUP_DIGEST, ROOT_DIGEST, root_checksum
from repa_pipe.stores.layout import latents_group
from repa_pipe.stores.manifest import read_commit, record_checksum
from repa_pipe.stores.metadata_writer import record_digests, set_attributes
from repa_pipe.stores.names import check_name
from repa_pipe.stores.verify import drop_bad_shards, verify_store

GROUP = "features/enc"
ESCAPES = ["../../../x", "/tmp/x", "latents/../../x", "a/b/c/d", "..", ".", "", "a//b", "\\..\\x", "nul\0", "\x1b[31m"]


def edit(file, change):
    values = json.loads(file.read_text())
    change(values)
    file.write_text(json.dumps(values))


def files_in(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.fixture
def site(tmp_path, make_store):
    """A store behind http, its folder, and a folder for the cache that lies deep in another one."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    path, _ = make_store()
    cache = tmp_path / "home/me/cache/deep"
    cache.mkdir(parents=True)
    handler = functools.partial(Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield path, f"http://127.0.0.1:{server.server_port}/store", cache
        server.shutdown()


def read_everything(url, cache):
    with open_store(url, cache) as store:
        store.read(GROUP, [0])


@pytest.mark.parametrize("name", [*ESCAPES, "latents/" + "x" * 300, "features/a.tmp-b"])
def test_names_in_a_store_behind_a_url_write_nothing_outside_of_the_cache(site, tmp_path, name):
    path, url, cache = site

    def add(root):
        nodes = root["consolidated_metadata"]["metadata"]
        nodes[name] = nodes[GROUP]

    edit(path / "zarr.json", add)
    before = files_in(tmp_path)
    with pytest.raises(StoreError, match=r"store/zarr.json: .* (cannot be a name in a store|is not the path of)"):
        read_everything(url, cache)
    assert files_in(tmp_path) == before


@pytest.mark.parametrize("name", ["../../../../../x", "/tmp/x", "..", "tokens/../../x"])
def test_names_of_arrays_are_refused(site, tmp_path, name):
    path, url, cache = site

    def rename(meta):
        meta["attributes"]["arrays"] = [name]

    def rename_copy(root):
        nodes = root["consolidated_metadata"]["metadata"]
        rename(nodes[f"{GROUP}/crc32c"])
        del nodes[GROUP]["attributes"][GROUP_DIGEST]

    edit(path / "zarr.json", rename_copy)
    edit(path / GROUP / "crc32c/zarr.json", rename)
    edit(path / GROUP / "zarr.json", lambda meta: meta["attributes"].pop(GROUP_DIGEST))
    for location in (path, url):
        with pytest.raises(StoreError, match=r"crc32c/zarr.json: .* cannot be a name in a store"):
            read_everything(location, cache)
    outside = {found for found in files_in(tmp_path) if not found.startswith("home/me/cache/deep/")}
    assert {found.split("/")[0] for found in outside} == {"store", "home"}
    assert not any(found.endswith("/x") for found in outside)


def test_keys_and_class_names_never_become_paths(helpers, site, tmp_path):
    path, url, cache = site
    names = ["../../../../cat", "/etc/dog", "owl"]

    def rename(root):
        attributes = root["attributes"]
        attributes["repa_pipe"]["class_names"] = names
        digest = attributes[ROOT_DIGEST]
        digest["crc32c"] = root_checksum(attributes["repa_pipe"], digest["files"])

    edit(path / "zarr.json", rename)
    with open_store(url, cache) as store:
        assert list(store.manifest.class_names) == names
        assert len(store.samples) == 50
    export.export(str(path), str(tmp_path / "out"), "safetensors", [GROUP], None)
    assert {name.split("/")[0] for name in files_in(tmp_path)} == {"store", "home", "out"}


def test_a_commit_record_cannot_name_files_outside_of_its_group(make_store, tmp_path):
    path, _ = make_store()
    precious = tmp_path / "precious"
    precious.write_text("mine")
    file = path / f"commits/{GROUP}/00001.json"
    record = json.loads(file.read_text())
    for name in ("../../../precious", str(precious), "tokens/c/1/../../../../../../precious", "tokens/c/1/0/0\n"):
        values = {key: value for key, value in record.items() if key != "crc32c"}
        values["files"] = values["files"] | {name: {"bytes": 4, "crc32c": 0}}
        file.write_text(json.dumps(values | {"crc32c": record_checksum(values)}))
        with pytest.raises(StoreError, match=r"00001.json: files: .* is not the path of a file of a shard"):
            read_commit(path, GROUP, 1)
    assert precious.read_text() == "mine"


@pytest.mark.parametrize("place", [GROUP, f"commits/{GROUP}", f"{GROUP}/tokens/c", f"{GROUP}/crc32c/c"])
def test_a_symbolic_link_in_a_store_leads_no_writer_out_of_it(helpers, tmp_path, place):
    path, outside = tmp_path / "store", tmp_path / "outside"
    manifest = helpers.new_store(path)
    helpers.write_group(path, manifest, helpers.FEATURES)
    for shard in (1, 3):
        (path / f"commits/{GROUP}/{shard:05d}.json").unlink()
    (path / place).rename(outside)
    (path / place).symlink_to(outside)
    before = {file: file.stat().st_mtime_ns for file in outside.rglob("*") if file.is_file()}
    with pytest.raises(StoreError, match=r"is not written, since it leads out of .*/store: replace symbolic links"):
        helpers.write_group(path, manifest, helpers.FEATURES)
    assert {file: file.stat().st_mtime_ns for file in outside.rglob("*") if file.is_file()} == before


def test_a_symbolic_link_in_a_cache_leads_no_writer_out_of_it(site, tmp_path):
    _, url, cache = site
    open_store(url, cache).close()
    (group,) = cache.rglob(GROUP)
    outside = group.rename(tmp_path / "outside")
    group.symlink_to(outside)
    before = {file: file.stat().st_ino for file in outside.rglob("*")}
    with pytest.raises(StoreError, match=r"is not written, since it leads out of .*: replace symbolic links"):
        open_store(url, cache)
    assert {file: file.stat().st_ino for file in outside.rglob("*")} == before


def test_repairing_and_changing_attributes_follow_no_symbolic_link(make_store, tmp_path):
    path, _ = make_store()
    for shard in range(4):
        os.truncate(path / f"{GROUP}/tokens/c/{shard}/0/0", 100)
    report = verify_store(path)
    (path / GROUP).rename(tmp_path / "outside")
    (path / GROUP).symlink_to(tmp_path / "outside")
    before = files_in(tmp_path / "outside")
    with pytest.raises(StoreError, match="replace symbolic links"):
        drop_bad_shards(path, report)
    with pytest.raises(StoreError, match="replace symbolic links"):
        set_attributes(path, GROUP, {"width": 1})
    with pytest.raises(StoreError, match="replace symbolic links"):
        record_digests(path)
    assert files_in(tmp_path / "outside") == before


def test_a_store_that_is_itself_a_symbolic_link_can_be_extended(helpers, tmp_path):
    manifest = helpers.new_store(tmp_path / "disk/store")
    (tmp_path / "store").symlink_to(tmp_path / "disk/store")
    arrays = helpers.write_group(tmp_path / "store", manifest, helpers.FEATURES)
    with open_store(tmp_path / "store") as store:
        np.testing.assert_array_equal(store.read(GROUP, slice(None))[f"{GROUP}/tokens"], arrays["tokens"])


@pytest.mark.parametrize(
    "model",
    [
        "sd-vae-ft-mse",
        "dinov2-vit-b",
        "timm:vit_base_patch14_dinov2.lvd142m",
        "timm:hf-hub:owner/name@v1.0+a",
        "/home/me/my models/vae",
        "./models/vae",
        "../models/vae",
        "~/modèles/模型",
        "x=1,y=50%",
    ],
)
def test_names_of_models_and_paths_are_names_in_a_store(model):
    name = latents_group(model).removeprefix("latents/")
    assert check_name(name, "here") == name


@pytest.mark.parametrize("name", [*ESCAPES, " a", "a ", "a;b", "$(id)", "`id`", "a\nb", "<b>", "x" * 201, "\u202ea"])
def test_other_names_are_refused(name):
    with pytest.raises(StoreError, match=r"^here: .* cannot be a name in a store"):
        check_name(name, "here")
