"""Dimension names, and other readers of a store that need them."""

import json

import numpy as np
import pytest
import xarray

from repa_pipe.stores import open_store
from repa_pipe.stores.codecs import make_codec
from repa_pipe.stores.layout import ArraySpec, GroupSpec, dimension_names


def names_of(name, shape, dtype="float16"):
    return dimension_names(ArraySpec(name=name, sample_shape=shape, dtype=dtype))


def test_dimensions_are_named_after_what_they_hold():
    assert names_of("moments", (8, 32, 32), "float32") == ("sample", "channel", "y", "x")
    assert names_of("tokens", (256, 768)) == names_of("tokens_flipped", (256, 768)) == ("sample", "token", "width")
    assert names_of("tokens", (256, 384), "uint8") == ("sample", "token", "byte")
    assert names_of("token_scale", (256,)) == ("sample", "token")
    assert names_of("cls_token", (768,)) == ("sample", "width")


def test_arrays_of_other_kinds_have_names_of_their_own():
    assert names_of("depth", (4, 4)) == ("sample", "depth_0", "depth_1")
    assert names_of("tokens", (4,)) == ("sample", "tokens_0")


@pytest.fixture
def store_with(helpers, tmp_path):
    """Write a store with a group of the given arrays; return its path and the contents."""

    def make(arrays):
        path = tmp_path / "store"
        spec = GroupSpec(path="features/enc", arrays=tuple(arrays), attributes=helpers.FEATURES.attributes)
        return path, helpers.write_group(path, helpers.new_store(path), spec)

    return make


def test_xarray_opens_every_group(make_store):
    path, contents = make_store()
    with xarray.open_zarr(str(path)) as root:
        assert root["label"].dims == ("sample",)
        assert root["label"].values.tolist() == open_store(path).labels.tolist()
    for name, dims in {
        "latents/tiny/moments": ("channel", "y", "x"),
        "features/enc/tokens": ("token", "width"),
    }.items():
        group, array = name.rsplit("/", 1)
        with xarray.open_zarr(str(path), group=group) as opened:
            assert opened[array].dims == ("sample", *dims)
            assert opened["crc32c"].dims == ("sample", "array")
            np.testing.assert_array_equal(opened[array].isel(sample=slice(14, 18)), contents[name][14:18])


def test_xarray_opens_the_whole_store_as_a_tree(make_store):
    path, _ = make_store()
    with xarray.open_datatree(str(path), engine="zarr") as tree:
        assert tree["features/enc/cls_token"].dims == ("sample", "width")
        assert tree["latents/tiny/moments"].sizes == {"sample": 50, "channel": 8, "y": 8, "x": 8}


@pytest.mark.parametrize("codec", ["float16", "int8", "int4"])
def test_xarray_opens_the_arrays_of_every_codec_with_flipped_views(store_with, codec):
    arrays = [*make_codec(codec, 16, 24).arrays, ArraySpec(name="cls_token", sample_shape=(24,), dtype="float16")]
    flipped = [ArraySpec(name=f"{a.name}_flipped", sample_shape=a.sample_shape, dtype=a.dtype) for a in arrays]
    path, contents = store_with([*arrays, *flipped])
    with xarray.open_zarr(str(path), group="features/enc") as group:
        for name, expected in contents.items():
            np.testing.assert_array_equal(group[name], expected)


def test_the_copy_of_the_metadata_in_the_root_has_the_names_as_well(make_store):
    path, _ = make_store()
    copied = json.loads((path / "zarr.json").read_text())["consolidated_metadata"]["metadata"]
    arrays = {name: meta for name, meta in copied.items() if meta["node_type"] == "array"}
    assert len(arrays) == 6
    for name, meta in copied.items():
        assert meta == json.loads((path / name / "zarr.json").read_text())
    assert all(len(meta["dimension_names"]) == len(meta["shape"]) for meta in arrays.values())


def test_our_reader_ignores_the_names(make_store):
    path, contents = make_store()
    for file in path.rglob("zarr.json"):
        meta = json.loads(file.read_text())
        meta.pop("dimension_names", None)
        file.write_text(json.dumps(meta))
    got = open_store(path).read("features/enc", slice(None))["features/enc/tokens"]
    np.testing.assert_array_equal(got, contents["features/enc/tokens"])
