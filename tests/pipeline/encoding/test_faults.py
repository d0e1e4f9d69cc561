"""Runs of the command with missing and broken images, interruptions, hung reads and lost nodes, some on Ray."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from repa_pipe.config import EncodeConfig
from repa_pipe.pipeline import encode
from repa_pipe.pipeline.encoding.group_encoder import EncodedBatch
from repa_pipe.sources.demo_images import photographs
from repa_pipe.stores import open_store

pytestmark = pytest.mark.slow
LATENTS = "latents/tiny-kl-f8"
ON_RAY = {"ray": True, "actors": 1}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """48 small photographs, for 12 shards of four."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("images") / "class-0"
    folder.mkdir()
    for number in range(48):
        path, _ = photographs()[number % 20]
        with Image.open(path) as photograph:
            photograph.convert("RGB").resize((280 + number, 270)).save(folder / f"{number:03d}.jpg")
    return folder.parent


@pytest.fixture(scope="module")
def encoded(images, tmp_path_factory):
    store = tmp_path_factory.mktemp("encoded") / "store"
    encode.run(config_of(images, store))
    return store


def config_of(images, store, **changes):
    options = {"vae": "tiny-kl-f8", "shard_size": 4, "batch_size": 4, "device": "cpu"}
    return EncodeConfig(source=str(images), store=str(store), **options | changes)


def environment(**values):
    """Return the environment in which subprocesses can import faulty_source."""
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"PYTHONPATH": paths} | values


def start(config, **values):
    command = [sys.executable, "-m", "repa_pipe.cli", *config.command().split()[1:]]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=environment(**values),
    )


def empty_copy(encoded, store):
    """Copy a store without its shards and commit records."""
    shutil.copytree(encoded, store)
    shutil.rmtree(store / "commits")
    for folder in store.glob("*/*/*/c"):
        shutil.rmtree(folder)
    return store


def array_bytes(store):
    files = sorted(path for path in store.rglob("*") if path.is_file() and "commits" not in path.parts)
    return {str(path.relative_to(store)): path.read_bytes() for path in files}


def count_commits(store):
    return len(list(Path(store).glob("commits/*/*/*.json")))


def wait_for_shards(store, count, process):
    while count_commits(store) < count:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)


@pytest.mark.parametrize("runner", [{}, ON_RAY], ids=["inline", "ray"])
def test_a_shard_that_fails_three_times_is_reported_at_the_end(images, tmp_path, runner):
    vanishing = tmp_path / "images"
    shutil.copytree(images, vanishing)
    config = config_of(vanishing, tmp_path / "store", **runner)
    encode.open_or_create(config).close()
    (vanishing / "class-0/005.jpg").unlink()
    script = tmp_path / "encode_listed.py"
    script.write_text(
        "import sys\n"
        "from repa_pipe import cli\n"
        "from repa_pipe.pipeline import encode\n"
        "from repa_pipe.stores import open_store\n"
        "encode.open_or_create = lambda config: open_store(config.store)\n"  # as if it vanished after it was listed
        f"sys.argv = {['repa-pipe', *config.command().split()[1:]]!r}\n"
        "cli.main()\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "error: shard 1 failed in every attempt: SourceError: " in done.stderr
    assert "class-0/005.jpg" in done.stderr
    assert "Traceback" not in done.stderr
    summary = json.loads(done.stdout[done.stdout.index("{") :])
    assert [failed["shard"] for failed in summary["failed"]] == [1]
    assert open_store(tmp_path / "store").group(LATENTS).missing_shards() == [1]


@pytest.mark.parametrize(
    ("runner", "number"),
    [
        pytest.param({}, signal.SIGINT, id="inline"),
        pytest.param({}, signal.SIGUSR1, id="inline-usr1"),
        pytest.param(ON_RAY, signal.SIGINT, id="ray"),
        pytest.param(ON_RAY, signal.SIGTERM, id="ray-term", marks=pytest.mark.slow),
    ],
)
def test_a_signal_stops_within_five_seconds_and_loses_only_shards_in_flight(images, encoded, tmp_path, runner, number):
    store = empty_copy(encoded, tmp_path / "store")
    process = start(config_of(images, store, source_kind="faulty", **runner), FAULTY_SLOW="0.4")
    wait_for_shards(store, 4, process)
    before = count_commits(store)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # to all processes of the command, as a terminal does
    else:
        process.send_signal(number)
    sent = time.monotonic()
    _, errors = process.communicate()
    assert time.monotonic() - sent < 5
    assert process.returncode == 130
    assert "interrupted; re-run the same command to resume" in errors
    assert "Traceback" not in errors
    assert before <= count_commits(store) <= before + 2
    encode.run(config_of(images, store))
    assert array_bytes(store) == array_bytes(encoded)


def test_a_hung_shard_is_retried_on_another_actor(images, encoded, tmp_path):
    store = empty_copy(encoded, tmp_path / "store")
    config = config_of(images, store, source_kind="faulty", ray=True, actors=2, shard_timeout=10.0)
    process = start(config, FAULTY_HANGS="class-0/017.jpg", FAULTY_MARKER=str(tmp_path / "hung"))
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    assert (tmp_path / "hung").exists()
    assert array_bytes(store) == array_bytes(encoded)


def broken_files(good):
    """Yield 1,000 files that are not images, of five kinds, each with a part of the expected reason."""
    import io
    import struct
    import zlib

    from PIL import Image

    def png(width, height):  # a header without pixels
        chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        data = b"IDAT" + zlib.compress(b"")
        parts = [
            struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in (chunk, data)
        ]
        return b"\x89PNG\r\n\x1a\n" + b"".join(parts)

    line = io.BytesIO()
    Image.new("RGB", (1, 300)).save(line, "PNG")
    for number in range(200):
        yield "truncated", good[: len(good) * (number + 20) // 300]
        yield "its format is HTML", f"<html>{number}</html>".encode()
        yield "empty", b""
        yield "decompression bomb", png(20_000 + number, 20_000)
        yield "pixels: a side is", png(2_000_000 + number, 10) if number % 2 else line.getvalue()


def test_1000_broken_images_are_listed_and_2000_good_ones_are_stored(tmp_path, monkeypatch):
    import io

    import numpy as np
    import pyarrow.parquet as pq
    from PIL import Image

    from repa_pipe.stores.layout import ArraySpec, GroupSpec

    class Means:
        """A fast replacement of the VAE."""

        spec = GroupSpec(
            path=LATENTS,
            arrays=(ArraySpec(name="moments", sample_shape=(6, 1, 1), dtype="float32"),),
            attributes={"vae": "tiny-kl-f8", "fingerprint": {}, "scale": [1.0] * 3, "bias": [0.0] * 3},
        )

        def __call__(self, crops):
            means = crops.float().mean((2, 3), keepdim=True) + 1
            return EncodedBatch({"moments": means.repeat(1, 2, 1, 1).numpy()})

    monkeypatch.setattr("repa_pipe.pipeline.encoding.shard.load_group_encoders", lambda *_: [Means()])
    folder = tmp_path / "images/class-0"
    folder.mkdir(parents=True)
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(buffer, "JPEG")
    good = buffer.getvalue()
    expected = {}
    for number, (reason, data) in enumerate(broken_files(good)):
        (folder / f"{3 * number:04d}.jpg").write_bytes(data)
        expected[f"class-0/{3 * number:04d}.jpg"] = reason
        (folder / f"{3 * number + 1:04d}.jpg").write_bytes(good)
        (folder / f"{3 * number + 2:04d}.jpg").write_bytes(good)
    result = encode.run(config_of(tmp_path / "images", tmp_path / "store", shard_size=64, max_bad=0.5))
    assert (result.num_samples, result.quarantined) == (3000, 1000)
    listed = {row["key"]: row["reason"] for row in pq.read_table(tmp_path / "store/quarantine.parquet").to_pylist()}
    assert listed.keys() == expected.keys()
    assert [key for key in listed if expected[key] not in listed[key]] == []
    store = open_store(tmp_path / "store")
    valid = store.valid_indices([LATENTS])
    assert len(valid) == 2000
    assert (store.read([LATENTS], valid)[f"{LATENTS}/moments"] > 1).all()


def test_shards_of_a_lost_node_are_encoded_on_another_one(images, encoded, tmp_path, monkeypatch):
    from ray.cluster_utils import Cluster

    for name, value in environment(FAULTY_SLOW="0.5").items():  # workers inherit it from their node
        monkeypatch.setenv(name, value)
    store = empty_copy(encoded, tmp_path / "store")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 10**8})
    try:
        node = cluster.add_node(num_cpus=1, object_store_memory=10**8)
        config = config_of(
            images,
            store,
            source_kind="faulty",
            ray_address=cluster.address,
            actors=2,
        )
        process = start(config)
        wait_for_shards(store, 4, process)
        cluster.remove_node(node, allow_graceful=False)
        out, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors
        assert json.loads(out[out.index("{") :])["encoded"] == 48
    finally:
        cluster.shutdown()
    assert array_bytes(store) == array_bytes(encoded)
