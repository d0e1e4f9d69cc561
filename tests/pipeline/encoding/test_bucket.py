"""Encoding into a bucket leaves the objects that encoding into a folder leaves as files."""

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
from PIL import Image

from repa_pipe.config import EncodeConfig
from repa_pipe.errors import ConfigError, RemoteError, StoreError
from repa_pipe.pipeline import encode
from repa_pipe.pipeline.encoding.shard import ShardEncoder
from repa_pipe.pipeline.encoding.work import open_or_create, prepare_groups
from repa_pipe.pipeline.store_tools import inspection as store_commands
from repa_pipe.stores import open_store
from repa_pipe.stores.remote import RemoteFiles

LATENTS, FEATURES = "latents/tiny-kl-f8", "features/efficientnet-lite0"
URL = "s3://stores/small"

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # boto's, of datetime


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
    return {one.key.removeprefix("small/"): one.get()["Body"].read() for one in bucket.objects.all()}


def assert_same_store(found, expected):
    """The same names and bytes, but for writer and time of commit records."""
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


def test_a_bucket_holds_what_a_folder_would(images, expected, bucket, capsys):
    result = encode.run(config_of(images, URL))
    assert_same_store(in_bucket(bucket), expected)
    assert "quarantine.parquet" in expected
    assert (result.encoded, result.quarantined) == (8, 1)
    assert sum(result.groups.values()) == sum(
        len(data) for name, data in expected.items() if "/c/" in name and name.startswith(("latents", "features"))
    )
    assert encode.run(config_of(images, URL)).encoded == 0
    assert f"{URL} is complete" in capsys.readouterr().err
    with open_store(URL) as store:
        assert store.read([LATENTS, FEATURES], [0, 5])[f"{FEATURES}/tokens"].any()


def failing_put(first, last):
    """`RemoteFiles.put`, which fails for the `first` commit record and all after it before the `last`."""
    put, records = RemoteFiles.put, []

    def put_or_fail(self, files):
        found = [name for name in files if name.startswith("commits/")]
        records.extend(found)
        if found and first <= len(records) < last:
            raise RemoteError("the network is gone")
        put(self, files)

    return put_or_fail


def test_a_shard_that_could_not_be_uploaded_is_tried_again(images, expected, bucket, monkeypatch):
    monkeypatch.setattr(RemoteFiles, "put", failing_put(4, 5))
    result = encode.run(config_of(images, URL))
    assert (result.failed, result.encoded) == ([], 8)
    assert_same_store(in_bucket(bucket), expected)


def test_a_run_that_the_network_ends_goes_on_to_the_same_objects(images, expected, bucket, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(RemoteFiles, "put", failing_put(4, math.inf))
        failed = encode.run(config_of(images, URL)).failed
    assert {one.cause for one in failed} == {"RemoteError: the network is gone"}
    assert sum(name.startswith("commits/") for name in in_bucket(bucket)) == 3
    assert encode.run(config_of(images, URL)).failed == []
    assert_same_store(in_bucket(bucket), expected)


def test_what_another_run_left_in_the_bucket_is_continued(images, expected, bucket):
    encode.run(config_of(images, URL))
    for key in (f"commits/{FEATURES}/00001.json", f"{FEATURES}/tokens/c/1/0/0"):
        bucket.Object(f"small/{key}").delete()
    before = {one.key: one.last_modified for one in bucket.objects.all()}
    time.sleep(1.1)  # the server's clock counts seconds
    assert encode.run(config_of(images, URL)).encoded == 2
    assert_same_store(in_bucket(bucket), expected)
    again = {one.key for one in bucket.objects.all() if before.get(one.key) != one.last_modified}
    assert {key for key in again if "/c/" in key and not key.startswith(f"small/{FEATURES}/")} == set()


def test_a_shard_that_another_worker_has_committed_is_left_alone(images, bucket):
    config = config_of(images, URL)
    encode.run(config)
    before = in_bucket(bucket)
    with ShardEncoder(config, (LATENTS, FEATURES)) as encoder:
        encoder.run(0, (LATENTS, FEATURES))
    assert in_bucket(bucket) == before


def test_an_image_that_changed_since_is_named(images, bucket):
    encode.run(config_of(images, URL, encoder=()))
    path = images / "class-0/2.png"
    data = path.read_bytes()
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes().ljust(len(data), b"\0"))  # the index lists sizes
    with pytest.raises(StoreError, match=r"class-0/2\.png .*has other bytes"):
        encode.run(config_of(images, URL))


def scale_in(bucket):
    return json.loads(in_bucket(bucket)[f"{LATENTS}/zarr.json"])["attributes"]["scale"]


def test_measured_scales_are_written_to_the_bucket(images, bucket):
    encode.run(config_of(images, URL, encoder=()))
    before = scale_in(bucket)
    store_commands.stats(URL, "tiny-kl-f8", write=True)
    assert scale_in(bucket) != before


def test_other_groups_than_the_bucket_has_are_refused_by_its_url(images, bucket):
    encode.run(config_of(images, URL))
    with pytest.raises(StoreError, match=f"^{URL}: {FEATURES} is stored as float16"):
        encode.run(config_of(images, URL, codec="int8"))
    with (
        open_or_create(config_of(images, URL)) as store,
        pytest.raises(StoreError, match=f"delete {URL}/{FEATURES} and {URL}/commits/{FEATURES}"),
    ):
        prepare_groups(store, [renamed_weights()])


def renamed_weights():
    with open_store(URL) as store:
        spec = store.group(FEATURES).spec
    return dataclasses.replace(spec, attributes=spec.attributes | {"fingerprint": {"weights_sha256": "other"}})


def test_web_servers_and_missing_buckets_are_refused(images, bucket):
    with pytest.raises(ConfigError, match="web servers take no files"):
        config_of(images, "https://example.org/store").validate()
    with pytest.raises(StoreError, match=r"s3://absent/store cannot be written .*check the URL"):
        encode.run(config_of(images, "s3://absent/store"))


@pytest.mark.slow
@pytest.mark.parametrize("ray", [False, True])
def test_three_kills_leave_the_objects_of_an_undisturbed_run(images, expected, bucket, ray):
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
