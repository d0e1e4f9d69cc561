"""`store repair`: damaged shards are encoded again, to the same bytes, and nothing is lost when that is impossible."""

import json
import shutil
import signal
import subprocess
import sys

import pytest
from PIL import Image

from repa_pipe.config import EncodeConfig, TrainConfig
from repa_pipe.errors import StoreError
from repa_pipe.pipeline import encode, train
from repa_pipe.sources.demo_images import photographs
from repa_pipe.stores import open_store
from repa_pipe.stores.metadata_writer import record_digests, set_attributes
from repa_pipe.stores.verify import verify_store

LATENTS, FEATURES = "latents/tiny-kl-f8", "features/efficientnet-lite0"


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """Ten small photographs in two classes, and a store of them with int8 tokens and flipped views, in three shards."""
    root = tmp_path_factory.mktemp("originals")
    for number in range(10):
        target = root / f"images/class-{number % 2}/{number:03d}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(photographs()[number][0]) as photograph:
            photograph.convert("RGB").resize((70 + number, 66)).save(target)
    options = {"vae": "tiny-kl-f8", "encoder": ("efficientnet-lite0",), "codec": "int8", "flip": True}
    size = {"shard_size": 4, "batch_size": 3, "resolution": 64, "device": "cpu"}
    encode.run(EncodeConfig(source=str(root / "images"), store=str(root / "store"), **options, **size))
    return root


@pytest.fixture
def copy(originals, tmp_path):
    """A copy of the store."""
    return shutil.copytree(originals / "store", tmp_path / "store")


def flip_byte(file, offset=100):
    data = bytearray(file.read_bytes())
    data[offset] ^= 8
    file.write_bytes(data)


def array_bytes(store):
    """Return the contents of all files except commit records, whose writer and time differ."""
    files = sorted(path for path in store.rglob("*") if path.is_file() and "commits" not in path.parts)
    return {str(path.relative_to(store)): path.read_bytes() for path in files}


def inodes(store):
    return {str(path.relative_to(store)): path.stat().st_ino for path in store.rglob("*") if path.is_file()}


def test_exactly_the_damaged_shards_are_encoded_again_to_the_same_bytes(originals, copy, run_cli):
    before = inodes(copy)
    flip_byte(copy / FEATURES / "tokens/c/0/0/0")
    flip_byte(copy / FEATURES / "token_scale_flipped/c/1/0", 5)
    flip_byte(copy / FEATURES / "crc32c/c/1/0", 5)
    (copy / LATENTS / "moments/c/2/0/0/0").unlink()
    flip_byte(copy / f"commits/{LATENTS}/00000.json")
    code, out, errors = run_cli("store", "repair", copy)
    assert (code, errors.count("ERROR")) == (0, 0), errors
    assert f"{FEATURES}: encoded shards 0, 1 again" in out
    assert f"{LATENTS}: encoded shards 0, 2 again" in out
    assert "last bits" not in out
    assert array_bytes(copy) == array_bytes(originals / "store")
    assert verify_store(copy).ok
    after = inodes(copy)
    replaced = {name for name, inode in before.items() if after[name] != inode}
    assert {name.split("/c/")[-1].split("/")[0] for name in replaced if FEATURES in name and "/c/" in name} == {
        "0",
        "1",
    }
    assert f"commits/{FEATURES}/00002.json" not in replaced
    assert f"commits/{LATENTS}/00001.json" not in replaced


def test_an_intact_store_is_left_as_it_is(copy, run_cli):
    before = inodes(copy)
    code, out, _ = run_cli("store", "repair", copy)
    assert (code, out) == (0, "all committed shards match their checksums\n")
    assert inodes(copy) == before


def refused(run_cli, copy, *options):
    """Run a repair that cannot work; return its message. The damaged shard and all others must be as they were."""
    before = array_bytes(copy), (copy / f"commits/{FEATURES}/00000.json").read_bytes()
    code, _, errors = run_cli("store", "repair", copy, *options)
    assert code == 2, errors
    assert (array_bytes(copy), (copy / f"commits/{FEATURES}/00000.json").read_bytes()) == before
    return errors.strip().splitlines()[-1]


def test_changed_and_missing_images_are_refused_and_nothing_is_lost(originals, copy, run_cli, tmp_path):
    flip_byte(copy / FEATURES / "tokens/c/0/0/0")
    images = shutil.copytree(originals / "images", tmp_path / "images")
    Image.new("RGB", (70, 66), "red").save(images / "class-0/002.jpg")
    size = (originals / "images/class-0/002.jpg").stat().st_size
    (images / "class-0/002.jpg").write_bytes((images / "class-0/002.jpg").read_bytes().ljust(size, b"\0"))
    message = refused(run_cli, copy, "--source", images)
    assert "image class-0/002.jpg (and 0 more of shard 0) differs from the one" in message
    (images / "class-0/002.jpg").unlink()
    assert "class-0/002.jpg" in refused(run_cli, copy, "--source", images)
    assert "nowhere does not exist" in refused(run_cli, copy, "--source", tmp_path / "nowhere")
    code, _, errors = run_cli("store", "repair", copy, "--source", originals / "images")
    assert code == 0, errors
    assert verify_store(copy).ok


def test_other_weights_than_those_of_the_group_are_refused(copy, run_cli):
    with open_store(copy) as store:
        fingerprint = store.group(FEATURES).fingerprint | {"weights_sha256": "0" * 64}
    set_attributes(copy, FEATURES, {"fingerprint": fingerprint})
    flip_byte(copy / FEATURES / "tokens/c/0/0/0")
    assert "was encoded with something else (weights_sha256: recorded '000" in refused(run_cli, copy)


def test_missing_weights_are_refused(copy, run_cli, tmp_path):
    flip_byte(copy / FEATURES / "tokens/c/0/0/0")
    message = refused(run_cli, copy, "--encoder-weights", f"efficientnet-lite0={tmp_path / 'missing.pt'}")
    assert "missing.pt" in message


def test_a_vae_that_only_the_store_names_is_not_downloaded(copy, run_cli):
    set_attributes(copy, LATENTS, {"vae": "owner/model"})
    flip_byte(copy / LATENTS / "moments/c/0/0/0/0")
    assert "names the VAE owner/model, which is neither one of" in refused(run_cli, copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"imported_from": "REPA's vae-sd folder"}, f"{LATENTS} was imported: run 'repa-pipe store verify"),
        ({"name": "another program"}, f"{LATENTS} has no recorded precision, so it was not encoded by repa-pipe"),
        (None, "was read with the source plug-in 'images', and a store cannot start a plug-in: pass --source-kind"),
    ],
)
def test_groups_that_cannot_be_encoded_again_are_refused(copy, run_cli, change, message):
    if change:
        set_attributes(copy, LATENTS, {"fingerprint": change})
    else:
        root = json.loads((copy / "zarr.json").read_bytes())
        root["attributes"]["repa_pipe"]["source"]["kind"] = "images"
        (copy / "zarr.json").write_text(json.dumps(root))
        record_digests(copy)
    flip_byte(copy / LATENTS / "moments/c/0/0/0/0")
    assert message in refused(run_cli, copy)


def test_damaged_metadata_is_reported_and_shards_are_still_repaired(originals, copy, run_cli):
    flip_byte(copy / FEATURES / "tokens/c/0/0/0")
    labels = (copy / "label/c/0").read_bytes()
    flip_byte(copy / "label/c/0", 4)
    code, out, _ = run_cli("store", "repair", copy)
    assert code == 1
    assert "metadata is not encoded again" in out
    (copy / "label/c/0").write_bytes(labels)
    assert array_bytes(copy) == array_bytes(originals / "store")


STOPPED = """
import os, signal, sys, time
from repa_pipe import cli
from repa_pipe.stores import writer
store, moment, number = sys.argv[1:]
def stop(*_, **__):
    os.kill(os.getpid(), getattr(signal, number))
    time.sleep(60)
setattr(writer, moment, stop)
sys.argv = ["repa-pipe", "store", "repair", store]
cli.main()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "number"),
    [
        ("write_commit", "SIGKILL"),
        pytest.param("atomic_replace", "SIGKILL", marks=pytest.mark.slow),
        pytest.param("atomic_write_bytes", "SIGINT", marks=pytest.mark.slow),
    ],
)
def test_a_stopped_repair_is_finished_by_the_next(originals, copy, run_cli, moment, number):
    flip_byte(copy / FEATURES / "tokens/c/0/0/0")
    command = [sys.executable, "-c", STOPPED, copy, moment, number]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == (130 if number == "SIGINT" else -signal.SIGKILL), done.stderr
    with open_store(copy) as store:  # the other samples are still there
        store.read(FEATURES, [4, 9])
    code, _, errors = run_cli("store", "repair", copy)
    assert code == 0, errors
    assert verify_store(copy).ok
    assert array_bytes(copy) == array_bytes(originals / "store")  # no temporary files either


@pytest.mark.slow
def test_a_run_stops_at_a_damaged_sample_and_resumes_bit_identically_after_the_repair(
    copy, run_cli, tmp_path, weights_of, assert_same_weights
):
    def config(name):
        options = {"model": "SiT-T/2", "encoder_depth": 2, "projector_embed_dims": 32, "batch_size": 4, "log_steps": 1}
        where = {"store": str(copy), "output_dir": str(tmp_path / "runs"), "exp_name": name, "device": "cpu"}
        steps = {"max_train_steps": 8, "checkpointing_steps": 1, "mixed_precision": "fp32", "report_to": "none"}
        return TrainConfig(**options, **where, **steps)

    expected = weights_of(train.run(config("intact")))
    flip_byte(copy / FEATURES / "tokens/c/1/0/0")
    with pytest.raises(StoreError, match=r"tokens/c/1/0/0: sample 4 .* does not match its checksum.* store repair"):
        train.run(config("damaged"))
    assert run_cli("store", "repair", copy)[0] == 0
    assert_same_weights(weights_of(train.run(config("damaged"))), expected)
