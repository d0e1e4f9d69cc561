"""Latents: images that overflow in half precision, VAEs that require float32, and the scale of what was encoded."""

import json

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from safetensors.torch import load_file, save_file

from repa_pipe.config import EncodeConfig
from repa_pipe.errors import StoreError, WeightsError
from repa_pipe.models.vae import load_vae
from repa_pipe.pipeline import encode
from repa_pipe.pipeline.encoding.group_encoder import EncodedBatch, WithFlips
from repa_pipe.pipeline.encoding.latents import LatentEncoder
from repa_pipe.pipeline.store_tools import inspection
from repa_pipe.stores import open_store
from repa_pipe.stores.layout import ArraySpec, GroupSpec, latents_group
from repa_pipe.stores.writer import ShardWriter

NOISE = (1, 4, 5)  # of ten images; the others are nearly the gray that is encoded as 0
BROKEN = 7
CPU = torch.device("cpu")


@pytest.fixture
def images(tmp_path):
    """Write ten images, of which three are noise and one is broken."""
    folder, rng = tmp_path / "images", np.random.default_rng(0)
    folder.mkdir()
    for number in range(10):
        pixels = np.full((256, 256, 3), 127, np.uint8)
        if number in NOISE:
            pixels = rng.integers(0, 256, pixels.shape, np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    (folder / f"{BROKEN}.png").write_bytes(b"not an image")
    return folder


@pytest.fixture
def vae(tmp_path):
    """Write a small VAE whose first convolution overflows in float16 for images that are not gray; return its path."""
    torch.manual_seed(0)
    model = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(4, 4, 8),
        norm_num_groups=4,
        mid_block_add_attention=False,
        force_upcast=False,
    )
    with torch.no_grad():
        model.encoder.conv_in.weight.mul_(3e5)
        model.encoder.conv_in.bias.zero_()
    model.save_pretrained(tmp_path / "vae")
    return tmp_path / "vae"


def edit_config(vae, **changes):
    path = vae / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def config_of(images, store, vae, **changes):
    options = {"shard_size": 4, "batch_size": 3, "device": "cpu", "precision": "fp16"} | changes
    return EncodeConfig(source=str(images), store=str(store), vae=str(vae), **options)


def contents(store):
    """Return all files of a store; of commit records all but writer, time and checksum."""
    found = {}
    for path in sorted(path for path in store.rglob("*") if path.is_file()):
        found[path.relative_to(store)] = path.read_bytes()
        if "commits" in path.parts:
            record = json.loads(path.read_bytes())
            found[path.relative_to(store)] = {k: v for k, v in record.items() if k not in ("writer", "time", "crc32c")}
    return found


def test_images_that_overflow_are_named_recorded_and_encoded_in_float32(images, tmp_path, vae, caplog):
    store_path = tmp_path / "store"
    result = encode.run(config_of(images, store_path, vae))
    store = open_store(store_path)
    group = store.group(latents_group(str(vae)))
    assert (result.in_float32, result.quarantined) == (3, 1)
    assert group.float32_samples == [*NOISE]
    assert group.fingerprint["precision"] == "float16"
    assert "shard 0: encoded in float32 after an overflow in half precision: 1.png\n" in caplog.text
    assert "shard 1: encoded in float32 after an overflow in half precision: 4.png, 5.png\n" in caplog.text
    assert "encoded in float32 after an overflow: 3" in inspection.info(str(store_path))
    stored = store.read([group.path], NOISE)[f"{group.path}/moments"]
    crops = np.stack([np.asarray(Image.open(images / f"{number}.png")) for number in NOISE])
    exact = load_vae(vae).encode(torch.from_numpy(crops).permute(0, 3, 1, 2))
    torch.testing.assert_close(torch.from_numpy(stored), exact, rtol=1e-4, atol=1e-5)


def test_a_shard_with_overflows_is_encoded_again_to_the_same_bytes(images, tmp_path, vae):
    config = config_of(images, tmp_path / "store", vae)
    encode.run(config)
    before = contents(tmp_path / "store")
    next((tmp_path / "store").glob("commits/latents/*/00001.json")).unlink()
    assert encode.run(config).in_float32 == 3
    assert contents(tmp_path / "store") == before


def test_an_image_overflows_if_one_of_its_views_does():
    class Overflowing:
        spec = GroupSpec(path="latents/x", arrays=(ArraySpec(name="moments", sample_shape=(1,), dtype="float32"),))

        def __call__(self, crops):
            return EncodedBatch({"moments": np.zeros((3, 1))}, float32_rows=(int(crops[0, 0, 0, 0]),))

    crops = torch.zeros(3, 3, 1, 2, dtype=torch.uint8)
    crops[0, 0, 0] = torch.tensor([2, 0])
    assert WithFlips(Overflowing())(crops).float32_rows == (0, 2)


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_moments_that_are_never_finite_end_the_run_and_name_the_images(images, tmp_path, vae, precision):
    weights = load_file(vae / "diffusion_pytorch_model.safetensors")
    weights["quant_conv.bias"][0] = torch.inf
    save_file(weights, vae / "diffusion_pytorch_model.safetensors")
    with pytest.raises(
        WeightsError, match=r"^images [04].png to [26].png: VAE .* 3 of 3 images are not finite in float32"
    ):
        encode.run(config_of(images, tmp_path / "store", vae, precision=precision))


def test_a_vae_that_requires_float32_is_encoded_in_float32_unless_precision_is_given(images, tmp_path, vae):
    def precision_of(**changes):
        config = config_of(images, tmp_path / "store", vae, **changes)
        return LatentEncoder(config, CPU, "fp16").spec.attributes["fingerprint"]["precision"]

    assert precision_of(precision=None) == "float16"
    edit_config(vae, force_upcast=True)
    assert precision_of(precision=None) == "float32"
    assert precision_of(precision="fp16") == "float16"
    encode.run(config_of(images, tmp_path / "store", vae))
    assert precision_of(precision=None) == "float16"  # that of the existing group, so that encoding can be resumed


def test_the_deviation_of_the_encoded_latents_is_recorded_and_an_unusual_one_reported(images, tmp_path, vae, caplog):
    encode.run(config_of(images, tmp_path / "store", vae, precision="fp32"))
    store = open_store(tmp_path / "store")
    group = store.group(latents_group(str(vae)))
    valid = [number for number in range(10) if number != BROKEN]
    mean, std = np.split(store.read([group.path], valid)[f"{group.path}/moments"].astype(np.float64), 2, axis=1)
    expected = 0.18215 * np.sqrt((mean**2 + std**2).mean() - mean.mean() ** 2)
    assert group.latents_std == pytest.approx(expected, rel=1e-5)
    assert sum(commit.latents["images"] for commit in group.commits.values()) == 9
    warning = f"standard deviation of about 1, found {expected:.3g} over 9 images (scale 0.18215)"
    assert warning in caplog.text
    assert f"std of scaled latents {expected:.3f}" in inspection.info(str(tmp_path / "store"))
    caplog.clear()
    inspection.stats(str(tmp_path / "store"), str(vae), write=True)
    encode.run(config_of(images, tmp_path / "store", vae, precision="fp32"))
    assert "standard deviation" not in caplog.text
    rewritten = open_store(tmp_path / "store").group(group.path)
    assert rewritten.latents_std == pytest.approx(1, abs=1e-3)


def test_a_shard_that_holds_no_image_has_no_deviation(images, tmp_path, vae):
    for path in images.iterdir():
        path.write_bytes(b"not an image")
    with pytest.raises(StoreError, match="none of the images"):
        encode.run(config_of(images, tmp_path / "store", vae, max_bad=1.0))
    assert open_store(tmp_path / "store").group(latents_group(str(vae))).latents_std is None


@pytest.mark.parametrize("bad", [np.nan, -np.inf])
def test_moments_that_are_not_finite_are_never_written(helpers, tmp_path, bad):
    manifest = helpers.new_store(tmp_path / "store")
    moments = helpers.random_arrays(helpers.LATENTS, 16)["moments"]
    moments[3, 0, 0, 0] = bad
    with (
        pytest.raises(StoreError, match="moments are NaN or infinite"),
        ShardWriter(tmp_path / "store", manifest, helpers.LATENTS, 0) as writer,
    ):
        writer.append({"moments": moments})
    assert not list((tmp_path / "store").rglob("commits/**/*.json"))
