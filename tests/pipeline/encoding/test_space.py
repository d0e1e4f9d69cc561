"""A disk that fills up while images are encoded: a real, small file system where this process may mount one."""

import errno
import json
import subprocess

import pytest
from PIL import Image

from repa_pipe.config import EncodeConfig
from repa_pipe.errors import StoreError
from repa_pipe.pipeline import encode
from repa_pipe.pipeline.encoding import shard
from repa_pipe.sources.demo_images import photographs
from repa_pipe.stores import open_store
from repa_pipe.stores.verify import verify_store
from repa_pipe.stores.writer import ShardFile

LATENTS = "latents/tiny-kl-f8"
IMAGES = 24


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images") / "class-0"
    folder.mkdir()
    with Image.open(photographs()[0][0]) as photograph:
        for number in range(IMAGES):
            photograph.convert("RGB").resize((256 + number, 256)).save(folder / f"{number:03d}.jpg")
    return folder.parent


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 400 KB, and a function that enlarges it."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options):
        command = ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)]
        return subprocess.run(command, check=False, capture_output=True).returncode == 0

    if not mount("size=400k"):
        pytest.skip("this process may not mount a file system")
    try:
        yield folder, lambda: mount("remount,size=20m")
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def config_of(images, store, **changes):
    options = {"vae": "tiny-kl-f8", "shard_size": 4, "batch_size": 4, "device": "cpu"}
    return EncodeConfig(source=str(images), store=str(store), **options | changes)


@pytest.mark.parametrize("runner", [{}, pytest.param({"ray": True, "actors": 1}, marks=pytest.mark.slow)])
def test_a_full_disk_ends_the_command_with_the_bytes_needed_and_a_larger_one_resumes(
    images, small_disk, run_cli, runner
):
    disk, enlarge = small_disk
    config = config_of(images, disk / "store", **runner)
    code, _, errors = run_cli("encode", *config.flags())
    assert (code, "Traceback" in errors) == (2, False)
    warning, error = [line for line in errors.splitlines() if line.startswith(("warning:", "error:"))]
    assert warning.startswith(f"warning: {disk}/store needs 786 KB more, and ")
    assert error.startswith(f"error: the disk of {disk}/store is full: ")
    with open_store(disk / "store") as store:
        missing = store.group(LATENTS).missing_shards()
        assert 0 < len(missing) < 6
        needed = len(missing) * 4 * store.group(LATENTS).spec.sample_bytes
    assert f"is full: {needed / 1000:.0f} KB are needed for the missing shards, " in error
    assert "re-run the same command" in error
    assert enlarge()
    code, out, errors = run_cli("encode", *config.flags())
    assert code == 0, errors
    assert json.loads(out[out.index("{") :])["encoded"] == 4 * len(missing)
    assert "needs" not in errors
    assert verify_store(disk / "store").ok


@pytest.mark.slow
def test_the_first_error_of_a_full_disk_or_quota_ends_the_command(images, tmp_path, monkeypatch):
    tried, original = [], ShardFile.append

    def append(self, block):
        tried.append(self.path)
        if len(tried) > 2:
            raise OSError(errno.EDQUOT, "Disk quota exceeded")
        original(self, block)

    monkeypatch.setattr(ShardFile, "append", append)
    monkeypatch.setattr("repa_pipe.pipeline.encoding.inline.IN_FLIGHT", 1)
    with pytest.raises(
        StoreError, match=r"store is full: 524 KB are needed for the missing shards, .* are free: free some"
    ):
        encode.run(config_of(images, tmp_path / "store"))
    assert len(tried) == 3
    monkeypatch.undo()
    assert encode.run(config_of(images, tmp_path / "store")).encoded == 16


def test_a_full_temporary_folder_of_a_store_in_a_bucket_is_named(images, bucket, monkeypatch):
    def fail(self, block):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ShardFile, "append", fail)
    with pytest.raises(
        StoreError, match=r"^the temporary folder .*, from which shards are uploaded, is full .* TMPDIR"
    ):
        encode.run(config_of(images, "s3://stores/one"))


def test_other_errors_of_the_disk_are_not_taken_for_a_full_one(images, tmp_path, monkeypatch):
    def fail(self, task, on_images=None):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(shard.ShardEncoder, "run", fail)
    result = encode.run(config_of(images, tmp_path / "store"))
    assert len(result.failed) == 6
    assert "Input/output error" in result.failed[0].cause
