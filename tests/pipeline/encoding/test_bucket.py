"""Encoding into a bucket writes the same objects as encoding into a folder writes files."""

import dataclasses
import json
import math
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from repa_pipe.config import EncodeConfig
from repa_pipe.errors import ConfigError, RemoteError, StoreError
from repa_pipe.pipeline import encode
from repa_pipe.pipeline.encoding.shard import ShardEncoder
from repa_pipe.pipeline.encoding.work import ShardTask, open_or_create
from repa_pipe.pipeline.store_tools import inspection as store_commands
from repa_pipe.stores import open_store
from repa_pipe.stores.creation import prepare_groups
from repa_pipe.stores.remote import RemoteFiles

LATENTS, FEATURES = "latents/tiny-kl-f8", "features/efficientnet-lite0"
URL = "s3://stores/small"

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of datetime, in boto


@pytest.fixture
def images(tmp_path):
    """Seven noisy images and a broken one, in two classes."""
    rng = np.random.default_rng(0)
    for number in range(8):
        path = tmp_path / f"images/class-{number % 2}/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    (tmp_path / "images/class-1/7.png").write_bytes(b"not an image")
    return tmp_path / "images"


def config_of(images, store, **changes):
    options = {"vae": "tiny-kl-f8", "encoder": ("efficientnet-lite0",), "shard_size": 2, "batch_size": 2}
    return EncodeConfig(source=str(images), store=str(store), device="cpu", **options | changes)


def on_disk(store):
    return {str(path.relative_to(store)): path.read_bytes() for path in store.rglob("*") if path.is_file()}


def in_bucket(bucket):
    return {item.key.removeprefix("small/"): item.get()["Body"].read() for item in bucket.objects.all()}


def assert_same_store(found, expected):
    """Compare names and bytes, except the writer and time of commit records."""
    assert sorted(found) == sorted(expected)
    for name, data in expected.items():
        if name.startswith("commits/"):
            records = [json.loads(each) for each in (data, found[name])]
            one, other = ({k: v for k, v in r.items() if k not in ("writer", "time", "crc32c")} for r in records)
            assert one == other, name
        else:
            assert found[name] == data, name


@pytest.fixture
def expected(images, tmp_path):
    encode.run(config_of(images, tmp_path / "store"))
    return on_disk(tmp_path / "store")


def test_a_bucket_holds_the_same_bytes_as_a_folder(images, expected, bucket, caplog):
    result = encode.run(config_of(images, URL))
    assert_same_store(in_bucket(bucket), expected)
    assert "quarantine.parquet" in expected
    assert (result.encoded, result.quarantined) == (7, 1)
    assert sum(result.groups.values()) == sum(
        len(data) for name, data in expected.items() if "/c/" in name and name.startswith(("latents", "features"))
    )
    assert encode.run(config_of(images, URL)).encoded == 0
    assert f"{URL} is complete" in caplog.text
    with open_store(URL) as store:
        assert store.read([LATENTS, FEATURES], [0, 5])[f"{FEATURES}/tokens"].any()


def failing_put(first, last):
    """Return a `RemoteFiles.put` that fails from the `first` commit record on, until the `last` (exclusive)."""
    put, records = RemoteFiles.put, []

    def put_or_fail(self, files):
        found = [name for name in files if name.startswith("commits/")]
        records.extend(found)
        if found and first <= len(records) < last:
            raise RemoteError("the network is gone")
        put(self, files)

    return put_or_fail


@pytest.mark.slow
def test_a_shard_that_could_not_be_uploaded_is_retried(images, expected, bucket, monkeypatch):
    monkeypatch.setattr(RemoteFiles, "put", failing_put(4, 5))
    result = encode.run(config_of(images, URL))
    assert (result.failed, result.encoded) == ([], 7)
    assert_same_store(in_bucket(bucket), expected)


@pytest.mark.slow
def test_a_run_that_the_network_ended_resumes_to_the_same_objects(images, expected, bucket, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(RemoteFiles, "put", failing_put(4, math.inf))
        failed = encode.run(config_of(images, URL)).failed
    assert {shard.cause for shard in failed} == {"RemoteError: the network is gone"}
    assert sum(name.startswith("commits/") for name in in_bucket(bucket)) == 3
    assert encode.run(config_of(images, URL)).failed == []
    assert_same_store(in_bucket(bucket), expected)


@pytest.mark.slow
def test_a_bucket_with_a_missing_shard_is_completed(images, expected, bucket):
    encode.run(config_of(images, URL))
    for key in (f"commits/{FEATURES}/00001.json", f"{FEATURES}/tokens/c/1/0/0"):
        bucket.Object(f"small/{key}").delete()
    before = {item.key: item.last_modified for item in bucket.objects.all()}
    time.sleep(1.1)  # times on the server are in whole seconds
    assert encode.run(config_of(images, URL)).encoded == 2
    assert_same_store(in_bucket(bucket), expected)
    written = {item.key for item in bucket.objects.all() if before.get(item.key) != item.last_modified}
    assert {key for key in written if "/c/" in key and not key.startswith(f"small/{FEATURES}/")} == set()


@pytest.mark.slow
def test_a_shard_that_another_worker_has_committed_is_unchanged(images, bucket):
    config = config_of(images, URL)
    encode.run(config)
    before = in_bucket(bucket)
    with ShardEncoder(config, (LATENTS, FEATURES), torch.device("cpu")) as encoder:
        encoder.run(ShardTask(0, (LATENTS, FEATURES)))
    assert in_bucket(bucket) == before


def test_an_image_that_has_changed_is_reported(images, bucket):
    encode.run(config_of(images, URL, encoder=()))
    path = images / "class-0/2.png"
    data = path.read_bytes()
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes().ljust(len(data), b"\0"))  # the index contains sizes
    with pytest.raises(StoreError, match=r"class-0/2\.png .*differs from the one that"):
        encode.run(config_of(images, URL))


def scale_of(bucket):
    return json.loads(in_bucket(bucket)[f"{LATENTS}/zarr.json"])["attributes"]["scale"]


def test_measured_scales_are_written_to_the_bucket(images, bucket):
    encode.run(config_of(images, URL, encoder=()))
    before = scale_of(bucket)
    store_commands.stats(URL, "tiny-kl-f8", write=True)
    assert scale_of(bucket) != before


def test_messages_about_different_groups_contain_the_url(images, bucket):
    encode.run(config_of(images, URL))
    with pytest.raises(StoreError, match=f"^{URL}: {FEATURES} is stored as float16"):
        encode.run(config_of(images, URL, codec="int8"))
    with (
        open_or_create(config_of(images, URL)) as store,
        pytest.raises(StoreError, match=f"delete {URL}/{FEATURES} and {URL}/commits/{FEATURES}"),
    ):
        prepare_groups(store, [spec_with_other_weights()])


def spec_with_other_weights():
    with open_store(URL) as store:
        spec = store.group(FEATURES).spec
    return dataclasses.replace(spec, attributes=spec.attributes | {"fingerprint": {"weights_sha256": "other"}})


def test_web_servers_and_missing_buckets_are_refused(images, bucket):
    with pytest.raises(ConfigError, match="web servers are read-only"):
        config_of(images, "https://example.org/store").validate()
    with pytest.raises(StoreError, match=r"s3://absent/store cannot be written .*check the URL"):
        encode.run(config_of(images, "s3://absent/store"))


@pytest.mark.slow
@pytest.mark.parametrize("ray", [False, True])
def test_three_kills_leave_the_objects_of_an_uninterrupted_run(images, expected, bucket, ray):
    config = config_of(images, URL, ray=ray, actors=1 if ray else None)
    command = [sys.executable, "-m", "repa_pipe.cli", *config.command().split()[1:]]
    rng = random.Random(0)
    for _ in range(3):
        process = subprocess.Popen(
            command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(rng.uniform(6, 14))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run(command, check=True, capture_output=True)
    assert_same_store(in_bucket(bucket), expected)
