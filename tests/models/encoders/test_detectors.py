"""Networks of published Fréchet distances: wired as their definitions say, checked with small random weights."""

import dataclasses

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch.nn import functional
from torchvision import transforms

from repa_pipe.errors import ConfigError, WeightsError
from repa_pipe.models.encoders import detectors
from repa_pipe.models.encoders.detectors import DETECTORS, PooledNetwork, check_detector
from repa_pipe.models.encoders.weights import create_on_meta

TRANSFORMER = {"embed_dim": 24, "depth": 2, "num_heads": 2}
SMALL = dict.fromkeys(DETECTORS, TRANSFORMER) | {
    "convnextv2-b-224": {"depths": (1, 1, 1, 1), "dims": (8, 12, 16, 24)},
}
ANY_SIZE = {"dynamic_img_size": True, "dynamic_img_pad": True}
WIDTHS = {"convnextv2-b-224": 1024, "siglip2-so400m-224": 1152}  # 1024 for the others


@pytest.fixture(scope="module")
def images():
    noise = torch.randint(0, 256, (2, 3, 64, 64), generator=torch.Generator().manual_seed(0))
    return functional.interpolate(noise.float(), size=256).to(torch.uint8)  # has edges, at which bicubic overshoots


@pytest.fixture
def made(monkeypatch, tmp_path):
    """Return a small network of the detector's architecture with random weights, and the detector with these."""

    def make(name):
        entry = DETECTORS[name]
        monkeypatch.setitem(DETECTORS, name, dataclasses.replace(entry, options={**entry.options, **SMALL[name]}))
        torch.manual_seed(0)
        model = timm.create_model(entry.architecture, num_classes=0, **entry.options, **SMALL[name]).eval()
        for weights in model.parameters():
            torch.nn.init.normal_(weights, std=0.2)
        torch.save(model.state_dict(), tmp_path / "weights.pth")
        return model, PooledNetwork(name, tmp_path / "weights.pth")

    return make


def prepared(images, side, mean, std):
    if images.shape[-1] == side:
        pixels = images / 255
    else:
        pixels = functional.interpolate(images / 255, size=(side, side), mode="bicubic", antialias=True)
        assert pixels.max() > 1  # it is not clamped
    return (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("convnextv2-b-224", 224),
        ("dinov2-l-256", 256),
        ("mae-l-224", 224),
        ("siglip2-so400m-224", 224),
        ("clip-l-256", 256),
    ],
)
@torch.no_grad()
def test_the_extractors_of_fdr_equal_a_call_of_timm(name, side, images, made):
    model, detector = made(name)
    config = model.pretrained_cfg
    tokens = model.forward_features(prepared(images, side, config["mean"], config["std"]))
    if name == "siglip2-so400m-224":
        expected = model.forward_head(tokens, pre_logits=True)
    else:
        expected = tokens.mean((2, 3)) if tokens.ndim == 4 else tokens[:, 0]
    assert expected.std(0).min() > 0  # the images differ
    found = detector(images)
    torch.testing.assert_close(found, expected)
    assert found.shape == (2, detector.width)
    assert (detector.library, detector.rule) == (f"timm {timm.__version__}", DETECTORS[name].rule)


@torch.no_grad()
def test_dinov2_at_224_pixels_is_that_of_dgm_eval(images, made):
    model, detector = made("dinov2-l-224")
    transform = transforms.Compose(
        [
            transforms.Resize((224, 224), transforms.InterpolationMode.BICUBIC),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    pixels = torch.stack([transform(Image.fromarray(image)) for image in np.asarray(images.permute(0, 2, 3, 1))])
    tokens = model.patch_embed.proj(pixels).flatten(2).transpose(1, 2)
    grid = model.pos_embed[:, 1:].reshape(1, 37, 37, -1).permute(0, 3, 1, 2)
    grid = functional.interpolate(grid, scale_factor=(16 + 0.1) / 37, mode="bicubic").flatten(2).transpose(1, 2)
    tokens = torch.cat([model.cls_token + model.pos_embed[:, :1], tokens[:1] + grid], dim=1)
    for block in model.blocks:
        tokens = block(tokens)
    found = detector(images)
    torch.testing.assert_close(found[:1], model.norm(tokens)[:, 0])


def test_two_sizes_of_dinov2_are_different_detectors(images, made):
    fingerprints, features = [], []
    for name in ("dinov2-l-224", "dinov2-l-256"):
        _, detector = made(name)
        fingerprints.append(detector.fingerprint)
        features.append(detector(images))
    assert fingerprints[0]["weights_sha256"] == fingerprints[1]["weights_sha256"]
    assert fingerprints[0]["rule"] != fingerprints[1]["rule"]
    assert not torch.allclose(*features, rtol=0.01)


def test_a_file_without_the_pooling_that_is_used_is_refused(made, tmp_path):
    model, _ = made("siglip2-so400m-224")
    kept = {key: value for key, value in model.state_dict().items() if not key.startswith("attn_pool.mlp.fc2")}
    torch.save(kept, tmp_path / "cut.pth")
    with pytest.raises(WeightsError, match=r"Missing key.*attn_pool\.mlp\.fc2"):
        PooledNetwork("siglip2-so400m-224", tmp_path / "cut.pth")


@pytest.mark.parametrize("name", DETECTORS)
def test_the_published_networks_have_the_widths_of_their_features(name):
    entry = DETECTORS[name]
    model = create_on_meta(entry.architecture, entry.options)
    assert model.num_features == WIDTHS.get(name, 1024)
    assert model.pretrained_cfg["interpolation"] == "bicubic"
    assert (tuple(model.pretrained_cfg["mean"]), tuple(model.pretrained_cfg["std"])) == (entry.mean, entry.std)
    assert model.pretrained_cfg["hf_hub_id"] == f"timm/{entry.architecture}"


def test_unknown_names_and_missing_files_are_refused_without_torch(tmp_path):
    with pytest.raises(
        ConfigError, match=r"unknown encoder 'dinov2-l'.* Detectors are also inception, lpips, convnextv2-b-224"
    ):
        check_detector("dinov2-l", None)
    with pytest.raises(WeightsError, match=r"missing\.pth does not exist"):
        check_detector("mae-l-224", str(tmp_path / "missing.pth"))
    check_detector("mae-l-224", None)
    check_detector("lpips", None)
    assert detectors.DETECTORS.keys().isdisjoint(detectors.NOT_HERE)
