"""`store quality`: reconstructions are compared with exactly the images that were encoded."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from repa_pipe.config import EncodeConfig
from repa_pipe.metrics import FeatureStatistics, frechet_distance
from repa_pipe.metrics.image_quality import psnr, ssim
from repa_pipe.models.encoders import load_encoder
from repa_pipe.models.vae import load_vae
from repa_pipe.pipeline import encode
from repa_pipe.pipeline.store_tools import quality
from repa_pipe.pipeline.store_tools.quality_options import QualityOptions
from repa_pipe.sources import center_crop
from repa_pipe.sources.demo_images import photographs

ALONE = "--without", "rfid", "--without", "ssim", "--without", "lpips"


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """Nine photographs and a store of them at 64 pixels: latents of the small VAE, and the pixels themselves."""
    root = tmp_path_factory.mktemp("quality")
    for number, (path, _) in enumerate(photographs()[:9]):
        target = root / f"images/class-{number % 2}/{number}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as photograph:
            photograph.convert("RGB").resize((70 + number, 66)).save(target)
    for vae in ("tiny-kl-f8", "pixels"):
        options = {"vae": vae, "resolution": 64, "shard_size": 4, "device": "cpu"}
        encode.run(EncodeConfig(source=str(root / "images"), store=str(root / "store"), **options))
    return root


@pytest.fixture
def out(tmp_path):
    return tmp_path / "quality.json"


def crops_of(root):
    """The center crops in the order of the store, uint8 [9, 3, 64, 64]."""
    paths = sorted((root / "images").rglob("*.png"))
    return torch.from_numpy(np.stack([center_crop(Image.open(path), 64) for path in paths])).permute(0, 3, 1, 2)


def reconstructions_of(images):
    vae = load_vae("tiny-kl-f8")
    plain = vae.with_scale([1.0] * 4, [0.0] * 4)
    return torch.cat([plain.decode(vae.encode(image[None])[:, :4]) for image in images])


@pytest.mark.slow  # imports torchmetrics, which takes seconds
def test_every_metric_is_that_of_the_reconstructions_and_the_crops(originals, out):
    pytest.importorskip("torchmetrics")
    name = "efficientnet-lite0"
    options = QualityOptions(
        vae="tiny-kl-f8", without=("lpips",), detector=name, batch_size=4, device="cpu", out=str(out)
    )
    table = quality.run(str(originals / "store"), options)
    images = crops_of(originals)
    decoded = reconstructions_of(images)
    found = json.loads(out.read_text())
    for metric, values in (("psnr", psnr(images, decoded)), ("ssim", ssim(images, decoded))):
        assert found["metrics"][metric]["mean"] == pytest.approx(values.double().mean().item(), rel=1e-4)
        assert found["metrics"][metric]["std"] == pytest.approx(values.double().std().item(), rel=1e-3)
        assert f"{found['metrics'][metric]['mean']:.4f} ± {found['metrics'][metric]['std']:.4f}" in table
    encoder, sets = load_encoder(name, None, 64), []
    for each in (images, decoded):
        statistics = FeatureStatistics(encoder.width)
        statistics.update(encoder(each).patch_tokens.mean(1))
        sets += [statistics.mean, statistics.covariance]
    assert found["metrics"][f"rfd_{name}"]["value"] == pytest.approx(frechet_distance(*sets), rel=1e-3)
    assert (found["num_images"], found["group"], found["resolution"]) == (9, "latents/tiny-kl-f8", 64)
    assert "biased" in found["notes"][0]


def test_the_figure_shows_the_worst_images_first_then_the_median(originals, out, run_cli):
    words = "--vae", "tiny-kl-f8", "--out", out, *ALONE
    code, _, errors = run_cli("store", "quality", originals / "store", *words)
    assert code == 0, errors
    images = crops_of(originals)
    values = psnr(images, decoded := reconstructions_of(images)).numpy()
    order = values.argsort().tolist()
    shown = json.loads(out.read_text())["shown"]
    assert [each["sample"] for each in shown] == order[:6]  # 4 worst, and 2 to 5 around the median, without duplicates
    np.testing.assert_allclose([each["psnr"] for each in shown], values[order[:6]], rtol=1e-4)
    figure = np.asarray(Image.open(out.with_suffix(".png"))).astype(int)
    assert figure.shape == (6 * 64, 3 * 64, 3)
    worst = images[order[0]].permute(1, 2, 0).numpy().astype(int)
    again = decoded[order[0]].permute(1, 2, 0).numpy().astype(int)
    assert (figure[:64, :64] == worst).all()
    assert abs(figure[:64, 64:128] - again).max() <= 1  # rounding depends on the batch
    assert abs(figure[:64, 128:] - (4 * abs(worst - again)).clip(0, 255)).max() <= 4


def test_images_without_a_difference_are_counted_and_their_psnr_is_infinite(originals, out, run_cli):
    words = "--vae", "pixels", "--out", out, *ALONE
    code, output, errors = run_cli("store", "quality", originals / "store", *words)
    assert code == 0, errors
    found = json.loads(out.read_text())
    assert found["metrics"]["psnr"] == {"mean": None, "std": None, "from": found["metrics"]["psnr"]["from"]}
    assert found["equal_images"] == 9
    assert "infinite dB" in output
    assert "9 images are decoded without any difference" in output


def test_images_are_spread_over_the_store(originals, out, run_cli):
    words = "--vae", "tiny-kl-f8", "--images", 3, "--out", out, *ALONE
    code, _, errors = run_cli("store", "quality", originals / "store", *words)
    assert code == 0, errors
    assert sorted(each["sample"] for each in json.loads(out.read_text())["shown"]) == [0, 4, 8]


def test_images_that_changed_since_are_refused(originals, out, tmp_path, run_cli):
    moved = shutil.copytree(originals / "images", tmp_path / "moved")
    first = sorted(moved.rglob("*.png"))[0]
    words = "store", "quality", originals / "store", "--vae", "tiny-kl-f8", "--source", moved, "--out", out, *ALONE
    assert run_cli(*words)[0] == 0
    data = bytearray(first.read_bytes())
    data[-1] ^= 1  # the size, which is compared first, stays
    first.write_bytes(data)
    out.unlink()
    code, _, errors = run_cli(*words)
    assert (code, errors.count("error")) == (2, 1)
    assert "class-0/0.png differs from the image that latents/tiny-kl-f8 was encoded from" in errors
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "holds latents of pixels, tiny-kl-f8: pass --vae with one of them"),
        (["--vae", "sd-vae-ft-mse"], "has no 'latents/sd-vae-ft-mse' (it has latents/pixels, latents/tiny-kl-f8)"),
        (["--vae", "tiny-kl-f8", "--source", "/nowhere"], "cannot be read"),
        (["--vae", "tiny-kl-f8", "--decoder", "pixels"], "decodes 3 channels, latents/tiny-kl-f8 has 4"),
        (["--vae", "tiny-kl-f8", "--images", "0"], "--images is 0: expected at least 1"),
        (["--vae", "tiny-kl-f8", "--out", "a.txt"], "expected a name that ends in .json"),
        (["--token-latents", "enc"], "--token-latents needs --decoder"),
        (["--token-latents", "enc", "--vae", "pixels"], "expected either --vae or --token-latents"),
    ],
)
def test_what_cannot_work_is_one_line(originals, tmp_path, run_cli, words, message):
    out = ("--out", tmp_path / "quality.json") if "--out" not in words else ()
    code, out, errors = run_cli("store", "quality", originals / "store", *ALONE, *out, *words)
    assert (code, out) == (2, "")
    assert message in errors.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_other_weights_than_those_that_encoded_are_refused(originals, tmp_path, run_cli):
    from repa_pipe.stores.metadata_writer import set_attributes

    store = shutil.copytree(originals / "store", tmp_path / "store")
    group = store / "latents/tiny-kl-f8"
    fingerprint = json.loads((group / "zarr.json").read_text())["attributes"]["fingerprint"]
    set_attributes(store, "latents/tiny-kl-f8", {"fingerprint": fingerprint | {"weights_sha256": "0" * 64}})
    words = "store", "quality", store, "--vae", "tiny-kl-f8", "--out", tmp_path / "q.json", *ALONE
    code, _, errors = run_cli(*words)
    assert code == 2
    assert "are not those that encoded latents/tiny-kl-f8" in errors
    assert run_cli(*words, "--decoder", "tiny-kl-f8")[0] == 0
