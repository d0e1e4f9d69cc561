"""VAEs: moments, scaling, errors, and the reconstruction quality of the one that ships with the package."""

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from repa_pipe.errors import ConfigError, NonFiniteError, WeightsError
from repa_pipe.models.vae import Vae, describe_vae, load_vae, vae_names
from repa_pipe.models.vae_files import is_downloaded, latents_scale_and_bias, overflows_in_float16, require_trusted
from repa_pipe.sources import center_crop

WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
FLUX_LIKE = {"latent_channels": 16, "scaling_factor": 0.3611, "shift_factor": 0.1159, "use_quant_conv": False}


def save_random_vae(folder: Path, seed: int = 0, attention: bool = False, **config: object) -> AutoencoderKL:
    """Write a random AutoencoderKL with 4x downsampling in diffusers' format, and return it."""
    torch.manual_seed(seed)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 16),
        norm_num_groups=4,
        mid_block_add_attention=attention,
        **config,
    ).eval()
    folder.mkdir(exist_ok=True)
    save_file(vae.state_dict(), folder / WEIGHTS_FILE)
    written = {key: value for key, value in vae.config.items() if key != "_use_default_values"}
    (folder / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKL", **written}))
    return vae


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def noise_images(*shape: int) -> Tensor:
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def tiny() -> Vae:
    return load_vae("tiny-kl-f8")


@pytest.fixture(scope="module")
def photos() -> Tensor:
    """The 20 ImageNet images of the package foolbox, not in tiny-kl-f8's training data: uint8 [20, 3, 256, 256]."""
    spec = find_spec("foolbox")
    assert spec is not None
    assert spec.origin is not None
    paths = sorted((Path(spec.origin).parent / "data").glob("imagenet_*.jpg"))
    crops = [center_crop(Image.open(path), 256) for path in paths]
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)


@pytest.fixture(scope="module")
def moments(tiny: Vae, photos: Tensor) -> Tensor:
    return torch.cat([tiny.encode(batch) for batch in photos.split(4)])


@pytest.fixture(scope="module")
def reconstructions(tiny: Vae, moments: Tensor) -> Tensor:
    latents = moments[:, :4] * tiny.latents_scale[0]
    return torch.cat([tiny.decode(batch) for batch in latents.split(4)])


def psnr(images: Tensor, others: Tensor) -> Tensor:
    return 10 * torch.log10(255**2 / (images.double() - others.double()).square().mean((1, 2, 3)))


def test_moments_are_the_posteriors_mean_and_standard_deviation(tmp_path: Path) -> None:
    published = save_random_vae(tmp_path)
    images = noise_images(2, 3, 32, 32)
    moments = load_vae(tmp_path).encode(images)
    with torch.no_grad():
        posterior = published.encode(images.float() / 127.5 - 1).latent_dist
    assert moments.shape == (2, 8, 8, 8)
    assert moments.dtype == torch.float32
    assert moments.is_contiguous()
    torch.testing.assert_close(moments[:, :4], posterior.mean, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(moments[:, 4:], posterior.std, atol=1e-5, rtol=1e-4)
    assert (moments[:, 4:] > 0).all()


def test_shift_and_scaling_factors_become_scale_and_bias(tmp_path: Path) -> None:
    published = save_random_vae(tmp_path, **FLUX_LIKE)
    vae = load_vae(tmp_path)
    assert (vae.latent_channels, vae.downsampling) == (16, 4)
    assert vae.latents_scale == (0.3611,) * 16
    assert vae.latents_bias == pytest.approx([-0.1159 * 0.3611] * 16)
    unscaled = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = published.decode(unscaled).sample * 127.5 + 127.5
    decoded = vae.decode((unscaled.double() - 0.1159) * 0.3611)
    assert decoded.dtype == torch.uint8
    assert decoded.shape == (1, 3, 32, 32)
    assert (decoded.float() - expected.clamp(0, 255)).abs().max() < 1.01


def test_mean_and_deviation_override_the_shift_factor(tmp_path: Path) -> None:
    save_random_vae(tmp_path, scaling_factor=0.5, latents_mean=[0, 1, -2, 3], latents_std=[1, 2, 4, 0.5])
    vae = load_vae(tmp_path)
    assert vae.latents_scale == (0.5, 0.25, 0.125, 1.0)
    assert vae.latents_bias == (0.0, -0.25, 0.25, -3.0)


def test_decoding_truncates_levels_as_published(tmp_path: Path) -> None:
    published = save_random_vae(tmp_path)
    with torch.no_grad():
        published.decoder.conv_out.weight.zero_()
        published.decoder.conv_out.bias.copy_(torch.tensor([-7.0, 2 * 100.9 / 255 - 1, 7.0]))
    save_file(published.state_dict(), tmp_path / WEIGHTS_FILE)
    decoded = load_vae(tmp_path).decode(torch.zeros(1, 4, 2, 2))
    assert decoded[0, :, 0, 0].tolist() == [0, 100, 255]
    assert decoded.unique().numel() == 3


def test_with_scale_changes_only_scale_and_bias(tmp_path: Path) -> None:
    save_random_vae(tmp_path)
    vae = load_vae(tmp_path)
    other = vae.with_scale([1, 2, 4, 8], [0, 1, 2, 3])
    latents = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(2))
    scale, bias = (torch.tensor(values).view(1, 4, 1, 1) for values in (other.latents_scale, other.latents_bias))
    assert torch.equal(other.decode(latents * scale + bias), vae.with_scale([1] * 4, [0] * 4).decode(latents))
    assert vae.latents_scale == (0.18215,) * 4
    assert other.fingerprint == vae.fingerprint
    with pytest.raises(ConfigError, match=r"bias of .* expected 4 numbers, one per channel, found 3"):
        vae.with_scale([1, 1, 1, 1], [0, 0, 0])
    with pytest.raises(ConfigError, match="contains 0"):
        vae.with_scale([1, 1, 0, 1], [0, 0, 0, 0])


def test_fingerprint_covers_what_moments_depend_on(tmp_path: Path) -> None:
    save_random_vae(tmp_path / "a")
    save_random_vae(tmp_path / "same", scaling_factor=0.7)
    save_random_vae(tmp_path / "other", seed=1)
    a, same, other = (load_vae(tmp_path / name).fingerprint for name in ("a", "same", "other"))
    assert json.loads(json.dumps(a)) == a
    assert same == a
    assert {key for key in a if a[key] != other[key]} == {"weights_sha256"}
    half = load_vae(tmp_path / "a", dtype=torch.bfloat16).fingerprint
    assert {key for key in a if a[key] != half[key]} == {"precision"}
    assert load_vae(tmp_path / "a", dtype=torch.float32).fingerprint == a


def test_bfloat16_moments_are_float32_and_close_to_exact(tmp_path: Path) -> None:
    save_random_vae(tmp_path)
    images = noise_images(2, 3, 32, 32)
    full, half = load_vae(tmp_path).encode(images), load_vae(tmp_path, dtype=torch.bfloat16).encode(images)
    assert half.dtype == torch.float32
    assert 0 < (full - half).abs().max() < 0.05
    with pytest.raises(ConfigError, match=r"torch\.int8"):
        load_vae(tmp_path, dtype=torch.int8)


def save_overflowing_vae(folder: Path, **config: object) -> AutoencoderKL:
    """Write a VAE whose first convolutions overflow in float16 for inputs that are not near 0."""
    vae = save_random_vae(folder, **config)
    with torch.no_grad():
        vae.encoder.conv_in.weight.mul_(3e5)
        vae.encoder.conv_in.bias.zero_()
        vae.decoder.conv_in.weight.mul_(3e5)
        vae.decoder.conv_in.bias.zero_()
        vae.post_quant_conv.bias.zero_()
    save_file(vae.state_dict(), folder / WEIGHTS_FILE)
    return vae


def gray_and_noise() -> Tensor:
    """Return four images; the second and the last are noise, the others nearly the gray that is encoded as 0."""
    images = torch.full((4, 3, 32, 32), 127, dtype=torch.uint8)
    images[1], images[3] = noise_images(2, 3, 32, 32)
    return images


def test_images_that_overflow_in_float16_are_encoded_in_float32(tmp_path: Path) -> None:
    save_overflowing_vae(tmp_path)
    images, exact, half = gray_and_noise(), load_vae(tmp_path), load_vae(tmp_path, dtype=torch.float16)
    with torch.no_grad(), torch.autocast("cpu", torch.float16):
        overflowing = half.model.encode(images / 127.5 - 1).latent_dist.parameters.isfinite().flatten(1).all(1)
    assert overflowing.tolist() == [True, False, True, False]
    moments, in_float32 = half.encode_checked(images)
    assert in_float32 == [1, 3]
    assert moments.isfinite().all()
    alone = torch.cat([exact.encode(image[None]) for image in images])
    assert torch.equal(moments[[1, 3]], alone[[1, 3]])
    assert not torch.equal(moments[[0, 2]], alone[[0, 2]])  # these remain in float16
    assert torch.equal(half.encode(images), moments)
    assert exact.encode_checked(images).in_float32 == []


def test_an_image_that_overflows_has_the_same_moments_in_any_batch(tmp_path: Path) -> None:
    save_overflowing_vae(tmp_path)
    half, images = load_vae(tmp_path, dtype=torch.float16), gray_and_noise()
    other = images.clone()
    other[3] = 127
    assert torch.equal(half.encode(images)[1], half.encode(other)[1])


def test_an_infinite_variance_is_not_clamped_to_a_finite_one(tmp_path: Path) -> None:
    vae = save_random_vae(tmp_path)
    with torch.no_grad():
        vae.quant_conv.weight[4:].mul_(1e30)
    save_file(vae.state_dict(), tmp_path / WEIGHTS_FILE)
    images = noise_images(1, 3, 32, 32)
    half = load_vae(tmp_path, dtype=torch.float16)
    assert half.encode_checked(images).in_float32 == [0]
    assert torch.equal(half.encode(images), load_vae(tmp_path).encode(images))


@pytest.mark.parametrize("dtype", [None, torch.float16, torch.bfloat16])
def test_moments_that_are_not_finite_in_float32_are_an_error(tmp_path: Path, dtype: torch.dtype | None) -> None:
    vae = save_random_vae(tmp_path)
    with torch.no_grad():
        vae.encoder.conv_out.bias[2] = torch.nan
    save_file(vae.state_dict(), tmp_path / WEIGHTS_FILE)
    with pytest.raises(WeightsError, match="the moments of 2 of 2 images are not finite in float32: its weights are"):
        load_vae(tmp_path, dtype=dtype).encode(noise_images(2, 3, 32, 32))


def test_latents_that_overflow_in_float16_are_decoded_in_float32(tmp_path: Path) -> None:
    save_overflowing_vae(tmp_path)
    latents = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    latents[1] = 0
    decoded = load_vae(tmp_path, dtype=torch.float16).decode(latents)
    exact = torch.cat([load_vae(tmp_path).decode(one[None]) for one in latents])
    assert torch.equal(decoded[[0, 2]], exact[[0, 2]])
    assert decoded[0].unique().numel() > 2
    assert not torch.equal(decoded[1], exact[1])  # this one remains in float16


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_latents_that_are_not_finite_do_not_become_black_images(tmp_path: Path, bad: float) -> None:
    save_random_vae(tmp_path)
    latents = torch.zeros(3, 4, 8, 8)
    latents[1, 0, 0, 0] = bad
    for dtype in (None, torch.float16):
        with pytest.raises(NonFiniteError, match="1 of 3 latents are NaN or infinite, first number 1"):
            load_vae(tmp_path, dtype=dtype).decode(latents)


def test_images_that_are_not_finite_are_an_error(tmp_path: Path) -> None:
    vae = save_random_vae(tmp_path)
    with torch.no_grad():
        vae.decoder.conv_out.bias[0] = torch.nan
    save_file(vae.state_dict(), tmp_path / WEIGHTS_FILE)
    with pytest.raises(NonFiniteError, match=r"2 of 2 images decoded by VAE .* are NaN or infinite"):
        load_vae(tmp_path).decode(torch.zeros(2, 4, 8, 8))


def test_the_scale_of_the_latents_is_known_without_torch(tmp_path: Path) -> None:
    save_random_vae(tmp_path, **FLUX_LIKE)
    vae = load_vae(tmp_path)
    assert latents_scale_and_bias(tmp_path) == (vae.latents_scale, vae.latents_bias)
    assert latents_scale_and_bias("sd-vae-ft-mse") == ((0.18215,) * 4, (0.0,) * 4)
    edit_config(tmp_path, scaling_factor=None)
    with pytest.raises(WeightsError, match="scaling_factor: expected float, found null"):
        latents_scale_and_bias(tmp_path)


def test_a_vae_overflows_in_float16_if_its_config_says_so(tmp_path: Path) -> None:
    save_random_vae(tmp_path, force_upcast=True)
    assert overflows_in_float16(tmp_path)
    edit_config(tmp_path, force_upcast=False)
    assert not overflows_in_float16(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["force_upcast"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert not overflows_in_float16(tmp_path)
    assert not any(overflows_in_float16(name) for name in vae_names())


def test_old_names_of_attention_layers_are_accepted(tmp_path: Path) -> None:
    save_random_vae(tmp_path, attention=True)
    images = noise_images(1, 3, 32, 32)
    expected = load_vae(tmp_path)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = load_file(tmp_path / WEIGHTS_FILE)
    for new, name in old.items():
        tensors = {key.replace(f".{new}.", f".{name}."): tensor for key, tensor in tensors.items()}
    assert "encoder.mid_block.attentions.0.proj_attn.bias" in tensors
    (tmp_path / WEIGHTS_FILE).unlink()
    torch.save(tensors, tmp_path / "diffusion_pytorch_model.bin")
    loaded = load_vae(tmp_path)
    assert torch.equal(loaded.encode(images), expected.encode(images))
    assert loaded.fingerprint == expected.fingerprint


def test_shape_is_known_without_weights(tmp_path: Path) -> None:
    save_random_vae(tmp_path, **FLUX_LIKE)
    (tmp_path / WEIGHTS_FILE).unlink()
    assert describe_vae(tmp_path) == (16, 4)
    shipped = dict.fromkeys(("sd-vae-ft-mse", "sd-vae-ft-ema", "tiny-kl-f8"), (4, 8))
    assert {name: describe_vae(name) for name in vae_names()} == shipped | {"pixels": (3, 1)}


def test_invalid_images_and_latents_are_rejected(tmp_path: Path) -> None:
    save_random_vae(tmp_path)
    vae = load_vae(tmp_path)
    with pytest.raises(ConfigError, match=r"float32 \[1, 3, 32, 32\]; expected torch\.uint8"):
        vae.encode(torch.zeros(1, 3, 32, 32))
    with pytest.raises(ConfigError, match="multiples of 4 pixels"):
        vae.encode(noise_images(1, 3, 30, 30))
    with pytest.raises(ConfigError, match=r"\[1, 8, 4, 4\].* \[B, 4, h, w\]"):
        vae.decode(torch.zeros(1, 8, 4, 4))


def test_unknown_name_error_lists_the_known_names(tmp_path: Path) -> None:
    for name in ("sd-vae", str(tmp_path / "missing"), "./missing/vae"):
        with pytest.raises(ConfigError, match="sd-vae-ft-mse, sd-vae-ft-ema, tiny-kl-f8") as raised:
            load_vae(name)
        assert "\n" not in str(raised.value)


def test_unreachable_hub_error_tells_which_files_to_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    for load in (load_vae, describe_vae):
        with pytest.raises(WeightsError, match=r"config\.json and .*huggingface\.co/owner/model .* folder") as raised:
            load("owner/model/vae")
        assert "owner/model/resolve/main/vae/config.json" in str(raised.value)
        assert "as the weights of" not in str(raised.value)
        assert "\n" not in str(raised.value)


def test_a_vae_that_only_a_checkpoint_names_has_to_be_on_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    save_random_vae(tmp_path / "folder")
    snapshot = tmp_path / "hub" / "models--owner--model" / "snapshots" / "0"
    snapshot.mkdir(parents=True)
    save_random_vae(snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0")
    for name in ("tiny-kl-f8", str(tmp_path / "folder"), "owner/model"):
        assert is_downloaded(name)
        assert require_trusted(name) == name
    (snapshot / WEIGHTS_FILE).unlink()
    assert not is_downloaded("owner/model")
    with pytest.raises(WeightsError, match="download it with 'hf download', or pass --vae owner/model to") as raised:
        require_trusted("owner/model")
    assert "\n" not in str(raised.value)
    assert require_trusted("sd-vae-ft-mse") == "sd-vae-ft-mse"  # downloaded when it is loaded
    with pytest.raises(ConfigError, match="unknown VAE"):
        require_trusted("../../no-such-folder")


def test_broken_folders_are_reported_in_one_line(tmp_path: Path) -> None:
    def message(name: str) -> str:
        with pytest.raises(WeightsError) as raised:
            load_vae(tmp_path / name)
        assert "\n" not in str(raised.value)
        return str(raised.value)

    (tmp_path / "empty").mkdir()
    assert "has no config.json" in message("empty")
    for name in ("no-weights", "truncated", "deeper", "lacking", "other-class", "no-json", "no-scale", "no-list"):
        save_random_vae(tmp_path / name)
    (tmp_path / "no-weights" / WEIGHTS_FILE).unlink()
    assert "has no diffusion_pytorch_model" in message("no-weights")
    content = (tmp_path / "truncated" / WEIGHTS_FILE).read_bytes()
    (tmp_path / "truncated" / WEIGHTS_FILE).write_bytes(content[:-100])
    assert "truncated" in message("truncated")
    edit_config(tmp_path / "deeper", layers_per_block=2)
    assert "does not match the config next to it" in message("deeper")
    tensors = load_file(tmp_path / "lacking" / WEIGHTS_FILE)
    tensors["quant_conv.bias"] = torch.zeros(3)
    save_file(tensors, tmp_path / "lacking" / WEIGHTS_FILE)
    assert "1 tensor(s) missing, unexpected or of another shape, the first being quant_conv.bias" in message("lacking")
    edit_config(tmp_path / "other-class", _class_name="AutoencoderKLWan")
    assert "found 'AutoencoderKLWan'" in message("other-class")
    (tmp_path / "no-json" / "config.json").write_text("<html>")
    assert "cannot be read (Expecting value" in message("no-json")
    edit_config(tmp_path / "no-scale", scaling_factor=None)
    assert "scaling_factor: expected float, found null" in message("no-scale")
    edit_config(tmp_path / "no-list", block_out_channels=8)
    assert "block_out_channels: expected array, found int" in message("no-list")
    with pytest.raises(WeightsError, match="block_out_channels: expected array, found int"):
        describe_vae(tmp_path / "no-list")


@pytest.mark.slow
def test_tiny_vae_reconstructs_unseen_images(photos: Tensor, reconstructions: Tensor) -> None:
    values = psnr(photos, reconstructions)
    assert reconstructions.shape == photos.shape
    assert values.mean() == pytest.approx(24.4, abs=0.1)
    assert values.min() > 16.5


def test_tiny_vae_decodes_inexact_latents_nearly_as_well(
    tiny: Vae, photos: Tensor, moments: Tensor, reconstructions: Tensor
) -> None:
    latents = moments[:4, :4] * tiny.latents_scale[0]
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(3))
    exact = psnr(photos[:4], reconstructions[:4]).mean()
    noisy = psnr(photos[:4], tiny.decode(latents + 0.1 * noise)).mean()
    assert exact - noisy < 0.5


def test_tiny_vaes_scaled_latents_have_unit_deviation(tiny: Vae, moments: Tensor) -> None:
    mean, std = moments.chunk(2, dim=1)
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(4))
    latents = (mean + std * noise) * tiny.latents_scale[0]
    assert 0.85 < latents.std() < 1.25
    assert latents.std((0, 2, 3)).min() > 0.7
    assert latents.mean((0, 2, 3)).abs().max() < 0.5


def test_tiny_vae_ships_in_four_megabytes() -> None:
    spec = find_spec("repa_pipe.models.vae")
    assert spec is not None
    assert spec.origin is not None
    files = list((Path(spec.origin).parent / "weights").glob("tiny-kl-f8.*"))
    assert {file.suffix for file in files} == {".json", ".safetensors"}
    assert sum(file.stat().st_size for file in files) <= 4_000_000
