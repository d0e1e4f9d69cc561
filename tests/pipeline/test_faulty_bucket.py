"""Encoding into and training from a bucket whose server fails."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from repa_pipe.config import EncodeConfig, EvaluateConfig
from repa_pipe.errors import RemoteError
from repa_pipe.pipeline import encode, report, train
from repa_pipe.pipeline.artifacts.images import open_images
from repa_pipe.pipeline.reporting.store import describe_store
from repa_pipe.stores import open_store
from repa_pipe.stores.verify import verify_store

URL = "s3://stores/small"


@pytest.fixture
def images(tmp_path):
    """Eight noisy images."""
    rng = np.random.default_rng(0)
    for number in range(8):
        path = tmp_path / f"images/class-{number % 2}/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    return tmp_path / "images"


def encode_config(images, store=URL):
    return EncodeConfig(
        source=str(images), store=str(store), vae="tiny-kl-f8", shard_size=2, batch_size=2, device="cpu"
    )


def data_of(files):
    return {name: data for name, data in files.items() if "/c/" in name}


def assert_commits_follow_their_files(bucket):
    """Every commit record was first written after all files that it lists, whatever failed in between."""
    written = [key for command, key in bucket.log if command == "PUT"]
    records = [key for key in written if "/commits/" in key]
    assert records
    for record in records:
        commit = json.loads(bucket.objects[record])
        files = [f"small/{commit['group']}/{name}" for name in commit["files"]]
        assert max(written.index(name) for name in files) < written.index(record)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["slow_down", "fail_randomly"])
def test_encoding_rides_out_faults_and_commits_last(images, faulty_bucket, short_limits, tmp_path, fault):
    encode.run(encode_config(images, tmp_path / "store"))
    expected = {
        f"small/{path.relative_to(tmp_path / 'store')}": path.read_bytes()
        for path in (tmp_path / "store").rglob("*")
        if path.is_file()
    }
    if fault == "fail_randomly":
        faulty_bucket.fail_randomly(0.3)
    else:
        faulty_bucket.fault = lambda request: "/c/1/" in request.key and faulty_bucket.slow_down(60 / short_limits)
    assert encode.run(encode_config(images)).failed == []
    assert data_of(faulty_bucket.objects) == data_of(expected)
    assert faulty_bucket.objects.keys() == expected.keys()
    assert_commits_follow_their_files(faulty_bucket)


@pytest.mark.slow
def test_a_kill_in_the_middle_of_an_upload_leaves_no_commit_record(images, faulty_bucket):
    command = [sys.executable, "-m", "repa_pipe.cli", *encode_config(images).command().split()[1:]]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def kill(request):
        if request.command == "PUT" and "/c/2/" in request.key:
            os.kill(process.pid, signal.SIGKILL)
            return request.reset()
        return False

    faulty_bucket.fault = kill
    assert process.wait(timeout=120) == -signal.SIGKILL
    assert [name for name in faulty_bucket.objects if name.endswith("00002.json")] == []
    faulty_bucket.fault = lambda request: False
    assert verify_store(URL).ok
    assert encode.run(encode_config(images)).failed == []
    assert verify_store(URL).ok
    with open_store(URL) as store:
        assert store.complete_groups("latents") == ["latents/tiny-kl-f8"]


@pytest.fixture
def config_in_bucket(config_of, faulty_bucket, tmp_path):
    """Return the config of a training run from a store in the bucket, with the given changes."""
    path = tmp_path / "store"
    for file in path.rglob("*"):
        if file.is_file():
            faulty_bucket.objects[f"small/{file.relative_to(path)}"] = file.read_bytes()
    return lambda **changes: config_of(store=URL, exp_name="remote", **changes)


@pytest.mark.slow
def test_training_rides_out_random_errors(config_of, config_in_bucket, faulty_bucket, weights_of, assert_same_weights):
    faulty_bucket.fail_randomly(0.3)
    assert_same_weights(weights_of(train.run(config_in_bucket())), weights_of(train.run(config_of())))


def test_training_from_a_server_that_fails_for_good_ends_in_a_remote_error(
    config_in_bucket, faulty_bucket, short_limits
):
    """The error says what happened and for how long it was retried, whatever process has read."""
    samples = []

    def fail_after_a_while(request):
        samples.extend([request.key] if "/c/" in request.key else [])
        return len(samples) > 20 and request.refuse(503, "SlowDown")

    faulty_bucket.fault = fail_after_a_while
    with pytest.raises(RemoteError, match=rf"^{URL} cannot be read \(503 Service Unavailable SlowDown, retried for \d"):
        train.run(config_in_bucket())


@pytest.mark.slow
def test_commands_describe_a_store_behind_a_url_as_one_in_a_folder(
    config_in_bucket, faulty_bucket, run_cli, tmp_path, images
):
    for command in ("info", "verify"):
        code, out, _ = run_cli("store", command, URL)
        assert (code, "incomplete" in out) == (0, False)
    assert run_cli("store", "ls", URL, "--limit", 2)[1].splitlines()[0] == "0\tcat\t100\t0000.png"
    assert "channel 0" in run_cli("store", "stats", URL, "--vae", "tiny")[1]
    code, out, errors = run_cli("store", "export", URL, "--out", tmp_path / "out", "--format", "safetensors")
    assert (code, "50 samples" in out) == (0, True), errors
    page = report.run([train.run(config_in_bucket()).run], str(tmp_path / "report.html")).read_text()
    assert "small: 1 run" in page
    with open_store(URL) as store:
        assert ("Path", URL) in describe_store(store).properties
    assert "s3:/stores" not in page.replace("s3://stores", "")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # images keep their store open
def test_a_reference_may_be_a_store_behind_a_url(images, faulty_bucket):
    encode.run(encode_config(images))
    config = EvaluateConfig(samples="samples.npz", reference=URL)
    assert open_images(config.reference, 4).count == 8


def test_damage_behind_a_url_is_repaired(images, faulty_bucket, run_cli):
    encode.run(encode_config(images))
    intact = dict(faulty_bucket.objects)
    (name,) = (name for name in intact if "moments/c/1/" in name)
    faulty_bucket.objects[name] = intact[name][:-1] + b"!"
    code, out, _ = run_cli("store", "verify", URL, "--repair")
    assert (code, "dropped 1 shard" in out) == (1, True)
    assert "small/commits/latents/tiny-kl-f8/00001.json" not in faulty_bucket.objects
    assert encode.run(encode_config(images)).encoded == 2
    assert data_of(faulty_bucket.objects) == data_of(intact)
    record = json.loads(faulty_bucket.objects["small/commits/latents/tiny-kl-f8/00001.json"])
    assert record["shard"] == 1
