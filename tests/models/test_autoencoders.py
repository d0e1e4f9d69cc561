"""Autoencoders of other classes than AutoencoderKL, and all forms of their files."""

import json
from pathlib import Path

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

from repa_pipe.errors import ConfigError, NonFiniteError, WeightsError
from repa_pipe.models.autoencoder_classes import CLASSES
from repa_pipe.models.ldm_names import config_from_shapes, diffusers_names
from repa_pipe.models.vae import create_vae_on_meta, describe_vae, load_vae
from repa_pipe.models.vae_files import check_vae, is_downloaded, is_fixed, latents_scale_and_bias

WEIGHTS = "diffusion_pytorch_model"
DOWN, UP = ("DownEncoderBlock2D",) * 3, ("UpDecoderBlock2D",) * 3
SMALL = {
    "AutoencoderKL": {
        "down_block_types": DOWN,
        "up_block_types": UP,
        "block_out_channels": (8, 8, 16),
        "norm_num_groups": 4,
        "mid_block_add_attention": False,
    },
    "AsymmetricAutoencoderKL": {
        "down_block_types": DOWN,
        "down_block_out_channels": (8, 8, 16),
        "up_block_types": UP,
        "up_block_out_channels": (8, 8, 16),
        "norm_num_groups": 4,
    },
    "AutoencoderDC": {
        "latent_channels": 4,
        "attention_head_dim": 8,
        "encoder_block_out_channels": (8, 8, 16),
        "decoder_block_out_channels": (8, 8, 16),
        "encoder_layers_per_block": (1, 1, 1),
        "decoder_layers_per_block": (1, 1, 1),
        "encoder_qkv_multiscales": ((), (), ()),
        "decoder_qkv_multiscales": ((), (), ()),
        "scaling_factor": 0.41407,
    },
    "AutoencoderTiny": {
        "encoder_block_out_channels": (8, 8, 8),
        "decoder_block_out_channels": (8, 8, 8),
        "num_encoder_blocks": (1, 1, 1),
        "num_decoder_blocks": (1, 1, 1),
    },
    "VQModel": {
        "down_block_types": DOWN,
        "up_block_types": UP,
        "block_out_channels": (8, 8, 16),
        "norm_num_groups": 4,
        "latent_channels": 5,
        "vq_embed_dim": 3,
        "num_vq_embeddings": 16,
        "mid_block_add_attention": False,
    },
    "AutoencoderKLQwenImage": {
        "base_dim": 8,
        "z_dim": 4,
        "dim_mult": [1, 1, 2],
        "num_res_blocks": 1,
        "temperal_downsample": [False, True],
        "latents_mean": [0.5, -1.0, 0.0, 2.0],
        "latents_std": [2.0, 1.0, 4.0, 0.5],
    },
}


def build(name, **changes):
    torch.manual_seed(0)
    return getattr(diffusers, name)(**SMALL[name] | changes).eval()


def noise_images(*shape):
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(5))


def test_every_class_is_tested():
    assert SMALL.keys() == CLASSES.keys()


@pytest.mark.parametrize("name", SMALL)
def test_every_class_encodes_and_decodes_as_diffusers_does(name, tmp_path):
    published = build(name)
    published.save_pretrained(tmp_path)
    vae = load_vae(tmp_path)
    channels, downsampling = describe_vae(tmp_path)
    images = noise_images(2, 3, 32, 32)
    pixels = images.float() / 127.5 - 1
    with torch.no_grad():
        output = published.encode(pixels.unsqueeze(2) if CLASSES[name].has_frames else pixels)
    encoded = vae.encode(images)
    assert encoded.dtype == torch.float32
    assert encoded.shape == (2, channels * (1 if vae.is_fixed else 2), 32 // downsampling, 32 // downsampling)
    if vae.is_fixed:
        expected = output.latent if name == "AutoencoderDC" else output.latents
        latents = encoded
    else:
        posterior = output.latent_dist
        expected = torch.cat([posterior.mean, posterior.std], dim=1)
        expected = expected.squeeze(2) if CLASSES[name].has_frames else expected
        latents = encoded[:, :channels]
    torch.testing.assert_close(encoded, expected, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        decoded = published.decode(latents.unsqueeze(2) if CLASSES[name].has_frames else latents).sample
    decoded = decoded.squeeze(2) if CLASSES[name].has_frames else decoded
    scale, bias = (torch.tensor(each).reshape(-1, 1, 1) for each in latents_scale_and_bias(tmp_path))
    found = vae.decode(latents * scale + bias)
    assert (found.float() - (decoded * 127.5 + 127.5).clamp(0, 255)).abs().max() < 1.01
    assert is_fixed(tmp_path) == vae.is_fixed
    assert vae.fingerprint["architecture"] == name
    assert create_vae_on_meta(tmp_path) is not None


def test_scale_and_bias_are_those_of_the_class(tmp_path):
    for name in SMALL:
        build(name).save_pretrained(tmp_path / name)
    scales = {name: latents_scale_and_bias(tmp_path / name) for name in SMALL}
    assert {name: scales[name][0][0] for name in SMALL if name != "AutoencoderKLQwenImage"} == {
        "AutoencoderKL": 0.18215,
        "AsymmetricAutoencoderKL": 0.18215,
        "AutoencoderDC": 0.41407,
        "AutoencoderTiny": 1.0,
        "VQModel": 0.18215,
    }
    assert scales["AutoencoderKLQwenImage"] == ((0.5, 1.0, 0.25, 2.0), (-0.25, 1.0, 0.0, -4.0))


@pytest.mark.parametrize("name", ["AutoencoderKLWan", "AutoencoderOobleck", 5])
def test_classes_whose_latents_are_no_grid_are_refused(name, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": name}))
    with pytest.raises(WeightsError, match=rf"whose latents are a grid of an image .*AutoencoderDC.*found {name!r}"):
        describe_vae(tmp_path)


@pytest.mark.parametrize("form", ["fp16", "sharded", "fp16 sharded", "bin", "both"])
def test_all_forms_of_a_folder_hold_the_same_weights(form, tmp_path):
    published = build("AutoencoderKL")
    published.save_pretrained(tmp_path / "plain")
    expected = load_vae(tmp_path / "plain")
    folder = tmp_path / "other"
    options = {
        "fp16": {"variant": "fp16"},
        "sharded": {"max_shard_size": "20KB"},
        "fp16 sharded": {"variant": "fp16", "max_shard_size": "20KB"},
        "bin": {"safe_serialization": False},
        "both": {"variant": "fp16"},
    }[form]
    (published.half() if "fp16" in options.values() else published).save_pretrained(folder, **options)
    if form == "both":
        plain = tmp_path / "plain" / f"{WEIGHTS}.safetensors"
        (folder / plain.name).write_bytes(plain.read_bytes())
    assert (len(list(folder.glob("*-of-*"))) > 1) == ("sharded" in form)
    check_vae(folder)
    found = load_vae(folder)
    is_half = form.startswith("fp16")
    for key, value in expected.model.state_dict().items():
        torch.testing.assert_close(found.model.state_dict()[key], value.half().float() if is_half else value)
    assert (found.fingerprint == expected.fingerprint) != is_half


def test_a_missing_part_is_named(tmp_path):
    build("AutoencoderKL").save_pretrained(tmp_path, max_shard_size="20KB")
    part = sorted(tmp_path.glob("*-of-*"))[1]
    part.unlink()
    with pytest.raises(WeightsError, match=part.name):
        check_vae(tmp_path)
    index = tmp_path / f"{WEIGHTS}.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../../secret.safetensors"}}))
    with pytest.raises(WeightsError, match="weight_map: expected names of files next to it"):
        check_vae(tmp_path)


LDM = {
    "block_out_channels": (32, 32, 64),
    "layers_per_block": 1,
    "down_block_types": ("DownEncoderBlock2D", "DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
    "up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"),
}


def ldm_names(tensors, levels=3):
    """Return tensors of diffusers under the names of latent diffusion, written out independently of the product."""
    attention = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
    renamed = {}
    for name, value in tensors.items():
        old = name
        for level in range(levels):
            old = old.replace(f"encoder.down_blocks.{level}.resnets", f"encoder.down.{level}.block")
            old = old.replace(f"encoder.down_blocks.{level}.attentions", f"encoder.down.{level}.attn")
            old = old.replace(f"encoder.down_blocks.{level}.downsamplers.0", f"encoder.down.{level}.downsample")
            up = levels - 1 - level
            old = old.replace(f"decoder.up_blocks.{level}.resnets", f"decoder.up.{up}.block")
            old = old.replace(f"decoder.up_blocks.{level}.attentions", f"decoder.up.{up}.attn")
            old = old.replace(f"decoder.up_blocks.{level}.upsamplers.0", f"decoder.up.{up}.upsample")
        old = old.replace("mid_block.resnets.0", "mid.block_1").replace("mid_block.resnets.1", "mid.block_2")
        old = old.replace("mid_block.attentions.0", "mid.attn_1").replace("conv_norm_out", "norm_out")
        old = old.replace("conv_shortcut", "nin_shortcut")
        if "attn" in old:
            for new, part in attention.items():
                old = old.replace(f".{new}.", f".{part}.")
        renamed[old] = value[:, :, None, None] if "attn" in old and value.ndim == 2 else value
    return renamed


@pytest.mark.parametrize("attention_in_levels", [True, False], ids=["VA-VAE", "Stable Diffusion"])
@pytest.mark.parametrize("form", ["first_stage_model. safetensors", "state_dict pt", "plain ckpt"])
def test_a_file_with_the_names_of_latent_diffusion(form, attention_in_levels, tmp_path):
    changes = LDM if attention_in_levels else LDM | {"down_block_types": DOWN, "up_block_types": UP}
    torch.manual_seed(0)
    published = diffusers.AutoencoderKL(**changes, latent_channels=4).eval()
    prefix, kind = form.split(" ")
    tensors = ldm_names(published.state_dict())
    extra = {"loss.perceptual.weight": torch.zeros(3)}
    path = tmp_path / f"vae.{kind}"
    if kind == "safetensors":
        unet = {"model.diffusion_model.out.0.weight": torch.zeros(2)}
        save_file({f"{prefix}{key}": value.contiguous() for key, value in tensors.items()} | unet, path)
    elif prefix == "state_dict":
        torch.save({"state_dict": tensors | extra, "epoch": 3}, path)
    else:
        torch.save(tensors | extra, path)
    check_vae(path)
    assert is_downloaded(str(path))
    assert describe_vae(path) == (4, 4)
    vae = load_vae(path)
    assert vae.latents_scale == (0.18215,) * 4
    images = noise_images(1, 3, 32, 32)
    with torch.no_grad():
        posterior = published.encode(images.float() / 127.5 - 1).latent_dist
    torch.testing.assert_close(vae.encode(images)[:, :4], posterior.mean, rtol=1e-4, atol=1e-5)
    expected = published.config
    for key in ("down_block_types", "up_block_types", "block_out_channels", "layers_per_block", "latent_channels"):
        found = vae.model.config[key]
        assert (tuple(found) if isinstance(found, list) else found) == expected[key], key


def test_the_sizes_of_va_vae_follow_from_its_shapes():
    """f16d32: ch 128, ch_mult 1, 1, 2, 2, 4, two blocks per level, attention at 16 pixels, embed_dim 32."""
    block_types = ("DownEncoderBlock2D",) * 4 + ("AttnDownEncoderBlock2D",)
    with torch.device("meta"):
        model = diffusers.AutoencoderKL(
            block_out_channels=(128, 128, 256, 256, 512),
            layers_per_block=2,
            latent_channels=32,
            down_block_types=block_types,
            up_block_types=("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * 4,
        )
    tensors = ldm_names(model.state_dict(), levels=5)
    config = config_from_shapes(tensors, "vavae.pt")
    assert config["latent_channels"] == 32
    assert config["scaling_factor"] == 1.0
    assert tuple(config["down_block_types"]) == block_types
    assert {key: value.shape for key, value in diffusers_names(tensors).items()} == {
        key: value.shape for key, value in model.state_dict().items()
    }


def test_files_that_hold_no_autoencoder_are_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"conv.weight": torch.zeros(3)}, path)
    with pytest.raises(WeightsError, match="expected an autoencoder with the names of latent diffusion"):
        describe_vae(path)
    published = diffusers.AutoencoderKL(**LDM, latent_channels=4)
    tensors = {key: value.contiguous() for key, value in ldm_names(published.state_dict()).items()}
    save_file(tensors | {"encoder.conv_out.weight": torch.zeros(4, 64, 3, 3)}, path)
    with pytest.raises(WeightsError, match=r"an output of 8 channels of encoder\.conv_out"):
        describe_vae(path)
    del tensors["encoder.mid.block_1.norm1.weight"]
    save_file(tensors, path)
    with pytest.raises(WeightsError, match=r"mid_block\.resnets\.0\.norm1\.weight"):
        load_vae(path)


def test_pixels_are_latents_that_decode_to_themselves():
    pixels = load_vae("pixels")
    images = noise_images(2, 3, 8, 8)
    scale, bias = (torch.tensor(each).reshape(3, 1, 1) for each in latents_scale_and_bias("pixels"))
    latents = images.float() * scale + bias
    assert (latents.min(), latents.max()) == (-1, 1)
    assert torch.equal(pixels.decode(latents), images)
    assert torch.equal(pixels.decode(latents + 0.003), images)  # rounded: a level is 0.0078
    assert pixels.decode(torch.full((1, 3, 2, 2), 5.0)).unique().tolist() == [255]
    with pytest.raises(NonFiniteError):
        pixels.decode(latents * torch.nan)


def test_what_is_no_vae_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match="a folder, a file, or the owner/name of an autoencoder on Hugging Face"):
        check_vae("nothing")
    build("AutoencoderDC").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / f"{WEIGHTS}.safetensors")
    tensors.pop(next(iter(tensors)))
    save_file(tensors, tmp_path / f"{WEIGHTS}.safetensors")
    with pytest.raises(WeightsError, match=r"does not match the config next to it: 1 tensor\(s\) missing"):
        load_vae(Path(tmp_path))
