"""The cache of derived images: an entry per content, damaged files recomputed, failures only a warning."""

import numpy as np
import pytest

from repa_pipe.pipeline.reporting.image_cache import content_digest, read_cached, write_cached

KEY = {"kind": "test", "content": "ab"}
ARRAYS = {"colors": np.arange(24, dtype=np.uint8).reshape(2, 4, 3), "explained": np.array(0.25)}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("REPA_PIPE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "report-images"


def test_arrays_are_read_back_under_their_key_only(cache):
    assert read_cached(KEY) is None
    write_cached(KEY, ARRAYS)
    found = read_cached(KEY)
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype
    assert read_cached(KEY | {"content": "cd"}) is None
    assert [path.suffix for path in cache.iterdir()] == [".npz"]  # no temporary file is left


@pytest.mark.parametrize("damage", ["truncated", "changed", "empty", "text"])
def test_a_damaged_file_is_ignored_with_a_warning(cache, caplog, damage):
    write_cached(KEY, ARRAYS)
    (path,) = cache.iterdir()
    data = path.read_bytes()
    position = data.index(ARRAYS["colors"].tobytes())
    changed = data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]
    path.write_bytes({"truncated": data[:-40], "changed": changed, "empty": b"", "text": b"no zip file"}[damage])
    assert read_cached(KEY) is None
    assert "is damaged" in caplog.text
    write_cached(KEY, ARRAYS)
    assert read_cached(KEY) is not None


def test_a_cache_that_cannot_be_written_is_only_a_warning(cache, caplog):
    cache.parent.write_text("a file where a folder should be")
    write_cached(KEY, ARRAYS)
    assert "are not cached" in caplog.text
    assert read_cached(KEY) is None


def test_the_digest_depends_on_names_values_shapes_and_dtypes():
    array = np.arange(6, dtype=np.int16)
    variants = [{"a": array}, {"b": array}, {"a": array + 1}, {"a": array.reshape(2, 3)}, {"a": array.view(np.uint16)}]
    assert len({content_digest(one) for one in variants}) == len(variants)
    assert content_digest({"a": array, "b": array}) == content_digest({"b": array, "a": array.copy()})
