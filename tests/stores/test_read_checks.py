"""Samples are compared with their checksums when they are read, on every way from a store to its user."""

import dataclasses
import logging
import multiprocessing
import os
import re
import shutil

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from repa_pipe.errors import ConfigError, StoreError
from repa_pipe.stores import AlignmentDataset, MapStyleDataset, open_store
from repa_pipe.stores import reader as reader_module
from repa_pipe.stores.codecs import make_codec
from repa_pipe.stores.layout import FLIPPED, ArraySpec, GroupSpec, shard_file
from repa_pipe.stores.metadata_writer import record_digests
from repa_pipe.stores.tokens import read_tokens

ARRAYS = ("tokens", "token_scale", "cls_token", "moments")
GROUPS = {"moments": "latents/tiny"}
SAMPLES, SHARD_SIZE = 40, 16
FORKS = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def with_flips(spec):
    flipped = [dataclasses.replace(array, name=array.name + FLIPPED) for array in spec.arrays]
    return dataclasses.replace(spec, arrays=(*spec.arrays, *flipped))


CODES = GroupSpec(
    path="features/enc",
    arrays=(
        ArraySpec(name="tokens", sample_shape=(16, 256), dtype="int8"),  # 4,096 bytes, for O_DIRECT
        ArraySpec(name="token_scale", sample_shape=(16,), dtype="float16"),
        ArraySpec(name="cls_token", sample_shape=(24,), dtype="float16"),
    ),
    attributes={
        "encoder": "enc",
        "fingerprint": {"name": "enc"},
        "num_tokens": 16,
        "width": 256,
        "codec": make_codec("int8", 16, 256).attributes,
    },
)


@pytest.fixture
def path(helpers, tmp_path, tmp_path_factory):
    """A store with every kind of array, and with flipped views. Copying does not wait for the disk, unlike writing."""
    template = tmp_path_factory.getbasetemp() / "store-to-read"
    if not template.exists():
        manifest = helpers.new_store(template, SAMPLES, SHARD_SIZE)
        for spec in (helpers.LATENTS, CODES):
            helpers.write_group(template, manifest, with_flips(spec))
    return shutil.copytree(template, tmp_path / "store")


def file_of(path, array, sample):
    """Return the shard file of a sample, and the sample's first byte in it."""
    group = GROUPS.get(array.removesuffix(FLIPPED), "features/enc")
    with open_store(path) as store:
        spec = store.group(group).shard_indexes[array].layout.spec
    return path / group / array / shard_file(spec, sample // SHARD_SIZE), sample % SHARD_SIZE * spec.sample_bytes, spec


def flip_byte(file, offset):
    with file.open("r+b") as handle:
        handle.seek(offset)
        byte = handle.read(1)[0]
        handle.seek(offset)
        handle.write(bytes([byte ^ 0x10]))


def damage(path, array, sample, byte=7):
    file, start, _ = file_of(path, array, sample)
    flip_byte(file, start + byte)
    return file


def refusal(file, sample, remedy="run 'repa-pipe store repair"):
    return rf"{re.escape(str(file))}: sample {sample} \({sample:04d}\.png\) does not match its checksum.*: {remedy}"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(array=st.sampled_from(ARRAYS), flipped=st.booleans(), sample=st.integers(0, SAMPLES - 1), data=st.data())
def test_a_flipped_byte_anywhere_in_a_sample_is_refused_with_file_sample_and_remedy(path, array, flipped, sample, data):
    name = array + FLIPPED * flipped
    file, start, spec = file_of(path, name, sample)
    offset = start + data.draw(st.integers(0, spec.sample_bytes - 1))
    key, others = f"{GROUPS.get(array, 'features/enc')}/{name}", np.delete(np.arange(SAMPLES), sample)
    with open_store(path) as store:
        intact = store.read(key, others)[key]
    flip_byte(file, offset)
    try:
        with open_store(path) as store:
            with pytest.raises(StoreError, match=refusal(file, sample)):
                store.read(key, np.arange(SAMPLES))
            np.testing.assert_array_equal(store.read(key, others)[key], intact)
            with pytest.raises(StoreError, match=refusal(file, sample)):  # refused for as long as it is damaged
                store.read(key, [sample])
    finally:
        flip_byte(file, offset)


def dataset_of(path, **options):
    return AlignmentDataset(path, encoders="enc", batch_size=8, token_scales=True, cls_tokens=True, **options)


def read_epochs(dataset):
    try:
        for _ in range(2):  # those that fill no batch in one epoch are read in the other
            list(dataset)
    finally:
        dataset.close()


def load(path, start):
    dataset = dataset_of(path)
    list(DataLoader(MapStyleDataset(dataset), batch_size=8, num_workers=1, multiprocessing_context=start))


WAYS = {
    "read": lambda path: open_store(path).read(["latents/tiny", "features/enc"], range(SAMPLES)),
    "one sample": lambda path: open_store(path)[21],
    "iteration": lambda path: list(open_store(path)),
    "page cache": lambda path: read_epochs(dataset_of(path, direct=False)),
    "past the cache": lambda path: read_epochs(dataset_of(path, direct=True)),
    "reading process": lambda path: read_epochs(dataset_of(path, process=True)),
    "forked workers": lambda path: load(path, "fork"),
}
SPAWNED = {"spawned workers": lambda path: load(path, "spawn")}  # workers import torch again, twice


@FORKS
@pytest.mark.parametrize("way", [*WAYS, *(pytest.param(way, marks=pytest.mark.slow) for way in SPAWNED)])
def test_every_way_of_reading_refuses_a_damaged_sample(helpers, path, way):
    read = (WAYS | SPAWNED)[way]
    read(path)
    file = damage(path, "moments" if way == "forked workers" else "tokens", 21)
    with pytest.raises(StoreError, match=refusal(file, 21)) as raised:
        read(path)
    helpers.end_workers(raised)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        ("moments", ["store", "stats", "--vae", "tiny"]),
        ("tokens", ["store", "export", "--format", "safetensors", "--out", "exported"]),
        ("tokens", ["rank"]),
    ],
)
def test_commands_end_with_one_line_about_the_damaged_sample(path, run_cli, monkeypatch, array, words):
    monkeypatch.chdir(path.parent)
    for sample in range(SAMPLES):
        damage(path, array, sample)
    code, _, errors = run_cli(*words, "--store", "store")
    assert code == 2
    assert re.search(rf"error: store/.*/{array}/c/.*: sample \d+ \(\d+\.png\) does not match .*store repair", errors)
    assert "Traceback" not in errors


def test_decoded_tokens_are_refused(path):
    file = damage(path, "token_scale", 3)
    with open_store(path) as store, pytest.raises(StoreError, match=refusal(file, 3)):
        read_tokens(store, "features/enc", np.array([3]))


def test_flipped_views_of_a_dataset_are_refused(path):
    for sample in range(SAMPLES):
        damage(path, f"tokens{FLIPPED}", sample)
    with pytest.raises(StoreError, match=rf"tokens{FLIPPED}/c/.* does not match its checksum"):
        read_epochs(dataset_of(path, flip=True))


@pytest.mark.parametrize("how", [{"chunks": (1, 16, 256)}, {"chunks": (8, 16, 256), "compressors": None}])
@pytest.mark.filterwarnings("ignore:.*zarrs.*:UserWarning")
def test_arrays_that_another_program_rewrote_are_compared_too(path, how):
    name = "features/enc/tokens"
    values = zarr.open_group(str(path), mode="r")[name][:]
    shutil.rmtree(path / name)
    root = zarr.open_group(str(path), mode="r+", use_consolidated=False)
    array = root.create_array(name, shape=values.shape, dtype=values.dtype, **how)
    array[:] = values
    record_digests(path)
    np.testing.assert_array_equal(open_store(path).read(name, range(SAMPLES))[name], values)
    values[21, 3, 4] ^= 1
    array[:] = values
    with pytest.raises(StoreError, match=refusal(path / name, 21, "restore the array")):
        open_store(path).read(name, range(SAMPLES))
    for chunk in (path / name / "c").rglob("*"):
        if chunk.is_file():
            chunk.write_bytes(b"\xff" * 5)
    with pytest.raises(StoreError, match="tokens: samples 0 to 39 cannot be decoded"):
        open_store(path).read(name, range(SAMPLES))


def test_a_sample_that_is_damaged_later_is_found_by_the_random_checks(path):
    with open_store(path) as store:
        store.read("features/enc", range(SAMPLES))
        file = damage(path, "tokens", 21)
        with pytest.raises(StoreError, match=refusal(file, 21)):
            for _ in range(2000):  # it is missed with a probability of (63/64)^2000, 2e-14
                store.read("features/enc/tokens", [21])


def test_about_a_64th_of_later_reads_is_compared(path):
    with open_store(path) as store:
        store.read("features/enc", range(SAMPLES))
        checks = store._checks["features/enc"]["tokens"]
        counts = sum(checks.due(np.arange(SAMPLES)).sum() for _ in range(2000))
    assert 0.8 < counts / (2000 * SAMPLES / 64) < 1.2


def test_every_read_or_none_is_compared_on_request(path):
    with open_store(path, check_reads="every") as every, open_store(path, check_reads="never") as never:
        stores = [every, never]
        for store in stores:
            store.read("features/enc", range(SAMPLES))
        file = damage(path, "tokens", 21)
        for _ in range(3):  # not by the chance of 1/64
            with pytest.raises(StoreError, match=refusal(file, 21)):
                every.read("features/enc/tokens", [21])
        never.read("features/enc/tokens", [21])
    with open_store(path, check_reads="never") as store:
        store.read("features/enc", range(SAMPLES))
    with pytest.raises(ConfigError, match="check_reads is 'always': expected first, every, never"):
        open_store(path, check_reads="always")


def test_other_processes_read_with_the_same_setting(path):
    damage(path, "tokens", 21)
    dataset = AlignmentDataset(open_store(path, check_reads="never"), encoders="enc", batch_size=8, process=True)
    read_epochs(dataset)
    dataset.store.close()


def test_a_sample_that_is_right_when_it_is_read_again_is_a_warning(path, monkeypatch, caplog):
    calls = []

    def torn(fd, buffers, offset):
        got = os.preadv(fd, buffers, offset)
        calls.append(offset)
        if len(calls) == 1:
            buffers[0][3] ^= 1
        return got

    with open_store(path) as store:
        expected = store.read("features/enc/tokens", [21])
    dropped = []
    monkeypatch.setattr(os, "posix_fadvise", lambda *args: dropped.append(args[1:]))
    monkeypatch.setattr(reader_module, "os", _Os(torn))
    with caplog.at_level(logging.WARNING), open_store(path) as store:
        np.testing.assert_array_equal(
            *(each["features/enc/tokens"] for each in (store.read("features/enc/tokens", [21]), expected))
        )
    assert "was wrong when it was read, and right when it was read again" in caplog.text
    assert len(calls) == 2
    assert dropped[-1:] == [(calls[0], expected["features/enc/tokens"].nbytes, os.POSIX_FADV_DONTNEED)]


class _Os:
    """The module os with another `preadv`."""

    def __init__(self, preadv):
        self.preadv = preadv

    def __getattr__(self, name):
        return getattr(os, name)


def test_a_shard_that_shrinks_or_disappears_is_refused(path):
    file, _, _ = file_of(path, "tokens", 21)
    with open_store(path) as store:
        store.read("features/enc/tokens", [21])
        os.truncate(file, 100)
        with pytest.raises(StoreError, match=r"sample 21 .* is cut off: its file was truncated: run 'repa-pipe store"):
            store.read("features/enc/tokens", [21])
    file.unlink()
    with open_store(path) as store, pytest.raises(StoreError, match=r"is missing, although .*store repair STORE"):
        store.read("features/enc/tokens", [21])


def test_damaged_checksums_of_samples_are_refused(path):
    file = path / "features/enc/crc32c/c/1/0"
    flip_byte(file, 9)
    with open_store(path) as store:
        store.read("features/enc", [0, 39])  # other shards
        with pytest.raises(StoreError, match=rf"{file}, the checksums of samples, does not match its commit record"):
            store.read("features/enc", [21])
    file.unlink()
    with open_store(path) as store, pytest.raises(StoreError, match="does not match its commit record"):
        store.read("features/enc", [21])


def _compare_all(store):
    store.read("features/enc/tokens", range(SAMPLES))


@FORKS
def test_forked_processes_share_what_has_been_compared(path):
    with open_store(path) as store:
        store.read("features/enc/tokens", [0])
        checks = store._checks["features/enc"]["tokens"]
        assert checks.checked(np.arange(SAMPLES)).sum() == 1
        process = multiprocessing.get_context("fork").Process(target=_compare_all, args=(store,))
        process.start()
        process.join()
        assert process.exitcode == 0
        assert checks.checked(np.arange(SAMPLES)).all()
