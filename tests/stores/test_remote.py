"""Stores behind URLs: a real HTTP server with range requests, and the S3 protocol."""

import errno
import http.server
import multiprocessing
import os
import pickle
import re
import shutil
import socket
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest

from repa_pipe.errors import RemoteError, StoreError
from repa_pipe.stores import AlignmentDataset, open_store, reader, remote, remote_reader
from repa_pipe.stores.checksum import crc32c_bytes
from repa_pipe.stores.metadata_writer import set_attributes
from repa_pipe.stores.remote import RemoteFiles
from repa_pipe.stores.verify import verify_store

GROUPS = ["latents/tiny", "features/enc", "label"]
ROWS = [49, 0, 3, 3, 17]


class RangeHandler(http.server.SimpleHTTPRequestHandler):
    """`http.server` with byte ranges, and a log of the requests."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        byte_range = re.match(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        path = Path(self.translate_path(self.path))
        self.server.requests.append((self.path, byte_range and byte_range.groups()))
        if byte_range is None or not path.is_file():
            return super().do_GET()
        first, last = map(int, byte_range.groups())
        data = path.read_bytes()[first : last + 1]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{first + len(data) - 1}/{path.stat().st_size}")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
        return None


@pytest.fixture
def served(make_store):
    """A store on disk, its URL, and the list of requests."""
    path, _ = make_store()

    def handler(*arguments):
        return RangeHandler(*arguments, directory=str(path.parent))

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.requests = []
        server.block_on_close = False  # connections that clients keep open
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield path, f"http://127.0.0.1:{server.server_port}/store", server.requests
        server.shutdown()
        thread.join()


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        np.testing.assert_array_equal(ours[name], array)


def sample_requests(requests):
    """The requests for parts of shard files."""
    return [key for key, part in requests if part and "/c/" in key]


def test_a_store_behind_http_reads_the_same_as_on_disk(served):
    path, url, _ = served
    with open_store(url) as remote, open_store(path) as local:
        assert remote.group_names() == local.group_names()
        assert remote.samples.equals(local.samples)
        assert remote.valid_indices(GROUPS[:2]).tolist() == local.valid_indices(GROUPS[:2]).tolist()
        assert_same(remote.read(GROUPS, ROWS), local.read(GROUPS, ROWS))
        folder = remote.path
    assert not folder.exists()


def test_ranges_of_several_files_are_returned_in_order_and_missing_files_are_omitted(served):
    path, url, _ = served
    files = RemoteFiles(url)
    assert files.get(["zarr.json", "missing.json"]) == {"zarr.json": (path / "zarr.json").read_bytes()}
    ranges = [("zarr.json", 10, 5), ("label/c/0", 8, 100), ("zarr.json", 0, 3)]
    expected = [(path / name).read_bytes()[start : start + size] for name, start, size in ranges]
    assert [bytes(part) for part in files.get_ranges(ranges)] == expected
    with pytest.raises(StoreError, match=f"{url}"):
        files.get_ranges([("missing.json", 0, 3)])
    files.close()


def test_cached_samples_are_not_fetched_again_even_by_a_later_process(served, tmp_path):
    path, url, requests = served
    expected = open_store(path).read(GROUPS, ROWS)
    with open_store(url, cache=tmp_path / "cache") as store:
        assert_same(store.read(GROUPS, ROWS), expected)
        before = len(sample_requests(requests))
        assert_same(store.read(GROUPS, ROWS[::-1]), {name: array[::-1] for name, array in expected.items()})
        assert len(sample_requests(requests)) == before
    with open_store(url, cache=tmp_path / "cache") as store:
        assert_same(store.read(GROUPS, ROWS), expected)
        assert len(sample_requests(requests)) == before
        store.read(GROUPS, [48])
        assert len(sample_requests(requests)) > before


def test_samples_that_were_not_synced_are_fetched_again(served, tmp_path):
    path, url, requests = served
    killed = open_store(url, cache=tmp_path / "cache")
    killed.read(GROUPS, ROWS)  # never closed, so nothing was synced
    before = len(sample_requests(requests))
    with open_store(url, cache=tmp_path / "cache") as store:
        assert_same(store.read(GROUPS, ROWS), open_store(path).read(GROUPS, ROWS))
    assert len(sample_requests(requests)) > before


def test_a_cache_of_a_previous_store_is_refused(served, helpers, tmp_path):
    path, url, _ = served
    open_store(url, cache=tmp_path / "cache").close()
    shutil.rmtree(path)
    manifest = helpers.new_store(path, num_samples=20)
    helpers.write_group(path, manifest, helpers.LATENTS)
    with pytest.raises(StoreError, match="holds samples of a previous store"):
        open_store(url, cache=tmp_path / "cache")


def test_a_cache_of_a_group_encoded_with_other_weights_is_refused(served, tmp_path):
    path, url, _ = served
    open_store(url, cache=tmp_path / "cache").close()
    set_attributes(path, "features/enc", {"fingerprint": {"name": "other"}})
    with pytest.raises(StoreError, match="holds samples of a previous store"):
        open_store(url, cache=tmp_path / "cache")


def test_a_dataset_reads_from_a_url(served):
    path, url, _ = served
    options = {"latents": "tiny", "encoders": ["enc"], "batch_size": 8}
    with open_store(url) as remote, open_store(path) as local:
        for ours, theirs in zip(AlignmentDataset(remote, **options), AlignmentDataset(local, **options), strict=True):
            np.testing.assert_array_equal(ours.moments, theirs.moments)
            np.testing.assert_array_equal(ours.patch_tokens[0], theirs.patch_tokens[0])


def test_uncommitted_shards_behind_a_url_are_refused(served):
    path, url, _ = served
    (path / "commits/features/enc/00001.json").unlink()
    with (
        open_store(url) as store,
        pytest.raises(StoreError, match=r"http://.*: shard 1 of features/enc is not complete"),
    ):
        store.read(["features/enc"], [16])


def test_a_truncated_remote_shard_is_reported_in_one_line(served):
    path, url, _ = served
    file = path / "features/enc/tokens/c/2/0/0"
    file.write_bytes(file.read_bytes()[:1000])
    with open_store(url) as store, pytest.raises(StoreError, match=r"http://"):
        store.read(["features/enc/tokens"], [33])


def test_a_url_without_a_store_is_refused(served, tmp_path):
    _, url, _ = served
    with pytest.raises(StoreError, match=r"no store at http://.*/nowhere"):
        open_store(url + "/nowhere")
    with pytest.raises(StoreError, match="cannot be opened"):
        open_store("ftp://example.org/store")
    with pytest.raises(StoreError, match=r"a URL loses a slash in a pathlib\.Path"):
        open_store(Path(url))


def test_an_unreachable_server_is_reported_in_one_line(short_limits):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening
        with pytest.raises(StoreError, match=r"http://127.0.0.1:\d+/store cannot be read \(connection refused"):
            open_store(f"http://127.0.0.1:{taken.getsockname()[1]}/store")


def test_a_store_can_be_pickled(served, make_store):
    path, url, _ = served
    for where in (path, url):
        with open_store(where) as store, pickle.loads(pickle.dumps(store)) as copy:
            assert_same(copy.read(GROUPS, ROWS), store.read(GROUPS, ROWS))


def test_a_store_in_a_bucket_reads_the_same_as_on_disk(make_store, bucket):
    path, _ = make_store()
    for file in path.rglob("*"):
        if file.is_file():
            bucket.upload_file(str(file), f"small/{file.relative_to(path)}")
    with open_store("s3://stores/small") as remote, open_store(path) as local:
        assert_same(remote.read(GROUPS, ROWS), local.read(GROUPS, ROWS))
    with pytest.raises(StoreError, match="no store at s3://stores/other"):
        open_store("s3://stores/other")


def test_a_store_behind_a_url_is_verified_without_filling_the_disk(served, tmp_path, monkeypatch):
    path, url, _ = served
    sizes, download = [], RemoteFiles.download

    def measured(files, key, fd):
        download(files, key, fd)
        sizes.append(os.fstat(fd).st_size)

    monkeypatch.setattr(RemoteFiles, "download", measured)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    local, remote = verify_store(path), verify_store(url)
    assert (remote.ok, remote.num_shards, remote.num_bytes) == (True, local.num_shards, local.num_bytes)
    assert sum(sizes) == local.num_bytes
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and path not in file.parents]


def test_damage_behind_a_url_is_located_as_on_a_disk(served):
    path, url, _ = served
    tokens = path / "features/enc/tokens/c/1/0/0"
    data = bytearray(tokens.read_bytes())
    data[1000] ^= 1
    tokens.write_bytes(data)
    (path / "latents/tiny/moments/c/2/0/0/0").unlink()
    (path / "features/enc/cls_token/c/3/0").write_bytes(b"short")
    (path / "commits/latents/tiny/00000.json").unlink()
    local, remote = verify_store(path), verify_store(url)
    assert len(local.problems) == 3
    assert (remote.problems, remote.incomplete) == (local.problems, local.incomplete)


@pytest.mark.parametrize("refused", ["samples.parquet", "label/c/0", "commits/latents/tiny/00001.json"])
def test_files_that_the_server_refuses_are_not_damage(make_store, faulty_bucket, refused):
    path, _ = make_store()
    for file in path.rglob("*"):
        if file.is_file():
            faulty_bucket.objects[f"small/{file.relative_to(path)}"] = file.read_bytes()
    faulty_bucket.fault = lambda request: request.key == f"small/{refused}" and request.refuse(403, "AccessDenied")
    with pytest.raises(RemoteError, match="AccessDenied"):
        verify_store("s3://stores/small")


def _read_in_child(store, connection):
    try:
        store.read(["features/enc"], [0])
    except StoreError as error:
        connection.send(str(error))


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_remote_store_opened_before_a_fork_is_refused_after_it(served):
    _, url, _ = served
    with open_store(url) as store:
        store.read(["features/enc"], [0])
        ours, theirs = multiprocessing.Pipe()
        child = multiprocessing.get_context("fork").Process(target=_read_in_child, args=(store, theirs), daemon=True)
        child.start()
        assert ours.poll(20)
        assert "was opened before a fork" in ours.recv()
        child.join()


def flip_byte(file, offset):
    with file.open("r+b") as handle:
        handle.seek(offset)
        byte = handle.read(1)[0]
        handle.seek(offset)
        handle.write(bytes([byte ^ 1]))


TOKENS = "features/enc/tokens/c/1/0/0"  # its sample 17 starts at byte 768


@pytest.mark.parametrize("with_cache", [False, True])
def test_a_sample_that_arrives_damaged_is_refused_and_not_cached(served, tmp_path, with_cache):
    path, url, _ = served
    expected = open_store(path).read(GROUPS, ROWS)
    flip_byte(path / TOKENS, 768 + 5)
    with open_store(url, cache=tmp_path / "cache" if with_cache else None) as store:
        with pytest.raises(StoreError, match=rf"{url}/{TOKENS}: sample 17 \(0017.png\) does not match .* intact copy"):
            store.read(GROUPS, ROWS)
        flip_byte(path / TOKENS, 768 + 5)
        assert_same(store.read(GROUPS, ROWS), expected)


DAMAGE = {
    "sample": (TOKENS, 768 + 5, "cached sample 17 does not match its checksum: fetching it again"),
    "index": (TOKENS, -9, "the shard index fails its checksum: .*fetching the index of the shard again"),
    "checksums": ("features/enc/crc32c/c/1/0", 3, "crc32c/c/1/0 is damaged in the cache: fetching it again"),
    "hole": ("features/enc/tokens/present", 18, "cached sample 18 does not match its checksum: fetching it again"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_what_is_damaged_in_the_cache_is_fetched_again_with_a_warning(served, tmp_path, caplog, what):
    path, url, requests = served
    name, offset, warning = DAMAGE[what]
    expected = open_store(path).read(GROUPS, [17, 18])
    with open_store(url, cache=tmp_path / "cache") as store:
        store.read(GROUPS, [17])
        file = store.path / name
    flip_byte(file, offset % file.stat().st_size)
    with open_store(url, cache=tmp_path / "cache") as store:
        assert_same(store.read(GROUPS, [17, 18]), expected)
    assert re.search(warning, caplog.text)
    requests.clear()
    with open_store(url, cache=tmp_path / "cache") as store:  # the cache is intact again
        assert_same(store.read(GROUPS, [17, 18]), expected)
    assert not sample_requests(requests)


def test_samples_of_a_cache_that_is_deleted_while_it_is_read_are_fetched_again(served, tmp_path):
    path, url, _ = served
    with open_store(url, cache=tmp_path / "cache") as store:
        store._reader._local._descriptors._limit = 0  # files are opened again, as in stores of many shards
        store.read(GROUPS, ROWS)
        shutil.rmtree(store.path / "features/enc/tokens/c")
        store.read(GROUPS, [18])
        assert_same(store.read(GROUPS, ROWS), open_store(path).read(GROUPS, ROWS))


def test_neighboring_ranges_are_one_request_and_distant_ones_are_not(served):
    path, url, requests = served
    (path / "data").write_bytes(data := np.random.default_rng(0).bytes(8 * remote.GAP_BYTES))
    gap = remote.GAP_BYTES
    ranges = [("data", 5 * gap, 10), ("data", 0, 100), ("data", 100 + gap, 7), ("data", 50, 60), ("data", 5 * gap, 10)]
    files = RemoteFiles(url)
    assert [bytes(part) for part in files.get_ranges(ranges)] == [
        data[start : start + size] for _, start, size in ranges
    ]
    files.close()
    asked = sorted((int(first), int(last)) for key, (first, last) in requests if key.endswith("/data"))
    assert asked == [(0, 106 + gap), (5 * gap, 5 * gap + 9)]


def test_a_request_for_neighbors_has_a_largest_size():
    size = remote.MERGED_BYTES // 4
    merged = remote.merge_ranges([("data", place * size, size) for place in range(10)])
    assert [(each.start // size, each.size // size) for each in merged] == [(0, 4), (4, 4), (8, 2)]
    assert [each.size for each in remote.merge_ranges([("data", 0, 10 * size)])] == [10 * size]
    assert len(remote.merge_ranges([("a", 0, 5), ("b", 5, 5)])) == 2


@pytest.mark.parametrize("with_cache", [False, True])
def test_a_fetched_sample_is_compared_once(served, tmp_path, monkeypatch, with_cache):
    _, url, _ = served
    compared = []

    def counted(data):
        compared.append(len(data))
        return crc32c_bytes(data)

    with open_store(url, cache=tmp_path / "cache" if with_cache else None) as store:
        store.read(["features/enc"], [0])
        for module in (remote_reader, reader):
            monkeypatch.setattr(module, "crc32c_bytes", counted)
        before = len(compared)
        store.read(["features/enc"], [3, 4, 3])
        assert sorted(compared[before:]) == [
            48,
            48,
            768,
            768,
        ]  # two arrays, two samples, one of them twice in the batch


def test_a_cache_that_cannot_be_written_is_reported_in_one_line(served, tmp_path, monkeypatch):
    _, url, _ = served

    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with open_store(url, cache=tmp_path / "cache") as store:
        store.read(["features/enc"], [0])
        monkeypatch.setattr(os, "pwrite", full)
        with pytest.raises(
            StoreError, match=r"^\S+, a file of the cache, cannot be written \(No space left on device\)"
        ):
            store.read(["features/enc"], [3])
        monkeypatch.undo()
        assert_same(store.read(["features/enc"], [3]), open_store(served[0]).read(["features/enc"], [3]))
