"""RAE's first stage: encoder tokens as latents, their statistics, and the decoder, also as diffusers has it."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

import torch
from case import Case, Figures, filled
from rae_ditdh import is_input
from safetensors.torch import save_file
from torch import Tensor, nn

from repa_pipe.diffusion.normalization import Normalization
from repa_pipe.models.encoders.encoder import Encoder
from repa_pipe.models.encoders.registry import REGISTRY
from repa_pipe.models.encoders.token_choice import TokenChoice
from repa_pipe.models.rae_decoder import RaeDecoder

__all__ = ["compute", "is_input", "recognizes"]
NAME = "dinov2reg-vit-b"
TOLERANCES = {"pos_embed_largest_difference_.*": 5e-4}  # recorded with three decimals


def recognizes(case: Case) -> bool:
    return "running_statistics" in case.config


@torch.no_grad()
def compute(case: Case) -> Figures:
    return _latents(case) | _decoder(case) | _large(case) | _statistics(case) | _diffusers(case)


def encoder_of(config: dict, image_size: int, published: dict[str, Tensor], seed: int, keep: list[str]) -> Encoder:
    """Build a DINOv2 with registers from weights filled under the names of the published file."""
    sizes = {
        "embed_dim": config["hidden_size"],
        "depth": config["num_hidden_layers"],
        "num_heads": config["num_attention_heads"],
        "mlp_ratio": config["mlp_ratio"],
    }
    entry = dataclasses.replace(REGISTRY[NAME], options=sizes, width=sizes["embed_dim"], depth=sizes["depth"])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_file({name: value.contiguous() for name, value in filled(published, seed, keep).items()}, path)
        model = entry.weights.load(NAME, entry.architecture, sizes, path)
    choice = TokenChoice(block=entry.depth, plain_norm=True)
    return Encoder(NAME, entry, model, choice=choice, resolution=image_size, device=torch.device("cpu"), dtype=None)


def _published_shapes(config: dict) -> dict[str, Tensor]:
    """Return tensors under the names of transformers' Dinov2WithRegistersModel."""
    width, inner = config["hidden_size"], int(config["hidden_size"] * config["mlp_ratio"])
    patch, grid = config["patch_size"], config["image_size"] // config["patch_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.cls_token": (1, 1, width),
        "embeddings.mask_token": (1, width),
        "embeddings.register_tokens": (1, config["num_register_tokens"], width),
        "embeddings.position_embeddings": (1, grid**2 + 1, width),
        "embeddings.patch_embeddings.projection.weight": (width, 3, patch, patch),
        "embeddings.patch_embeddings.projection.bias": (width,),
        "layernorm.weight": (width,),
        "layernorm.bias": (width,),
    }
    for number in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{number}"
        for part in ("attention.query", "attention.key", "attention.value", "output.dense"):
            shapes |= linear_shapes(f"{layer}.attention.{part}", width, width)
        shapes |= linear_shapes(f"{layer}.mlp.fc1", width, inner) | linear_shapes(f"{layer}.mlp.fc2", inner, width)
        for norm in ("norm1", "norm2"):
            shapes |= {f"{layer}.{norm}.weight": (width,), f"{layer}.{norm}.bias": (width,)}
        shapes |= {f"{layer}.layer_scale{each}.lambda1": (width,) for each in (1, 2)}
    return {name: torch.zeros(shape) for name, shape in shapes.items()}


def linear_shapes(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _encoder(case: Case, image_size: int) -> Encoder:
    config = case.config
    shapes = _published_shapes(config["encoder"])
    return encoder_of(config["encoder"], image_size, shapes, config["fill_seed"], config["fill_keep"])


def decoder_of(case: Case, width: int, grid: int, image_mean: tuple, image_std: tuple) -> RaeDecoder:
    """Build a decoder of tokens on this grid, from weights filled under the names of the published file."""
    sizes = {key: value for key, value in case.config["decoder"].items() if key != "norm_pix_loss"}
    sizes |= {"hidden_size": width, "num_patches": grid**2, "patch_size": case.config["decoder_patch_size"]}
    sizes |= {"image_size": grid * sizes["patch_size"]}
    decoder = RaeDecoder(sizes, image_mean, image_std)
    published = {_published_name(name): value for name, value in decoder.network.state_dict().items()}
    decoder.load(filled(published, case.config["fill_seed"], case.config["fill_keep"]), case.path.name)
    return decoder


def _published_name(name: str) -> str:
    for ours, theirs in (("to_q", "query"), ("to_k", "key"), ("to_v", "value")):
        name = name.replace(f".attention.{ours}.", f".attention.attention.{theirs}.")
    return name.replace(".attention.to_out.0.", ".attention.output.dense.")


def _decoder_at(case: Case, grid: int) -> RaeDecoder:
    config = case.config
    return decoder_of(case, config["encoder"]["hidden_size"], grid, config["image_mean"], config["image_std"])


def normalization_of(case: Case) -> Normalization:
    """Return the normalization by the recorded mean and variance."""
    return Normalization(mean=case["latent_mean"], var=case["latent_var"], eps=case.config["stats_eps"])


def on_grid(tokens: Tensor) -> Tensor:
    """Return tokens [B, N, C] as [B, C, h, w]."""
    side = round(tokens.shape[1] ** 0.5)
    return tokens.transpose(1, 2).unflatten(2, (side, side))


def noised(case: Case, tokens: Tensor) -> Tensor:
    """Return tokens with the noise that only the decoder's training adds."""
    return tokens + case.config["noise_tau"] * case["noise_uniform"] * case["noise_normal"]


def _latents(case: Case) -> Figures:
    encoder, images = _encoder(case, case.config["image_size"]), case["images"]
    mean, std = (torch.tensor(case.config[name]).reshape(3, 1, 1) for name in ("image_mean", "image_std"))
    pixels = encoder._entry.preprocessing(images[:1], case.config["encoder_input_size"])
    tokens, normalization = encoder(images).patch_tokens, normalization_of(case)
    latents = normalization.normalize(on_grid(tokens))
    decoder = _decoder_at(case, latents.shape[-1])
    return {
        "resized_image_0": pixels * std + mean,
        "tokens": tokens,
        "latents": latents,
        "latents_noised": normalization.normalize(on_grid(noised(case, tokens))),
        "decoded": decoder(normalization.restore(case["latents_to_decode"])),
        "reconstructed": decoder(normalization.restore(latents[:1])),
        "decoder_logits": decoder.logits(tokens),
    }


def _decoder(case: Case) -> Figures:
    """Return the figures of a decoder that is given another grid than its own."""
    tokens = _encoder(case, case.config["image_size"])(case["images"]).patch_tokens
    grid = case.config["large"]["image_size"] // case.config["decoder_patch_size"]
    return {"resampled_decoder_logits_strided": _decoder_at(case, grid).logits(tokens)[:, ::16]}


def _large(case: Case) -> Figures:
    large = case.config["large"]
    tokens = _encoder(case, large["image_size"])(case["large_images"]).patch_tokens
    decoded = _decoder_at(case, large["image_size"] // case.config["decoder_patch_size"])(on_grid(tokens))
    stride, colors = large["decoded_stride"], decoded[0].flatten(1)
    return {
        "large_tokens_strided": tokens[:, :: large["tokens_stride"]],
        "large_decoded_strided": decoded[:, :, ::stride, ::stride],
        "large_decoded_mean_std": torch.stack([colors.mean(1), colors.std(1)]),
    }


def _statistics(case: Case) -> Figures:
    """Return what RAE's own script computes, a momentum average; repa-pipe only reads its files."""
    momentum = case.config["running_statistics"]["momentum"]
    batches = case["statistics_batches"]
    mean, var = torch.zeros_like(batches[0][0]), torch.ones_like(batches[0][0])
    for batch in batches:
        mean = mean.lerp(batch.mean(dim=0), momentum)
        var = var.lerp(batch.var(dim=0, unbiased=False), momentum)
    means, variances = case["statistics_rank_means"], case["statistics_rank_vars"]
    return {
        "statistics_running_mean": mean,
        "statistics_running_var": var,
        "statistics_merged_mean": means.mean(dim=0),
        "statistics_merged_var": variances.mean(dim=0) + means.var(dim=0, unbiased=False),
    }


def _diffusers(case: Case) -> Figures:
    """Return the figures of diffusers' own program, from which `RaeDecoder` differs by its position table."""
    from diffusers.models.autoencoders.autoencoder_rae import RAEDecoder

    config, eps = case.config, case.config["stats_eps"]
    std = (case["latent_var"] + eps).sqrt()
    tokens = _encoder(case, config["image_size"])(case["images"]).patch_tokens
    restored = case["latents_to_decode"] * (std + eps) + case["latent_mean"]
    decoder = _decoder_at(case, restored.shape[-1])
    published = _diffusers_pixels(decoder, restored)
    sides = [4, 16, 32]
    differences = []
    width = config["decoder"]["decoder_hidden_size"]
    for side in sides:
        sizes = {"decoder_hidden_size": width, "num_patches": side**2, "decoder_num_hidden_layers": 0}
        theirs = RAEDecoder(**sizes, decoder_num_attention_heads=1).decoder_pos_embed
        ours = RaeDecoder(sizes | {"decoder_num_attention_heads": 1}, (0,) * 3, (1,) * 3).network.decoder_pos_embed
        differences.append((theirs - ours).abs().max())
    own = RAEDecoder(decoder_hidden_size=width, num_patches=restored.shape[-1] ** 2, decoder_num_hidden_layers=0)
    decoder.network.decoder_pos_embed = own.decoder_pos_embed
    return {
        "diffusers_latents": (on_grid(tokens) - case["latent_mean"]) / (std + eps),
        "diffusers_decoded_strided": _diffusers_pixels(decoder, restored),
        "diffusers_decoded_with_published_pos_embed_strided": published,
        "pos_embed_largest_difference_side_4_16_32": torch.stack(differences),
    }


def _diffusers_pixels(decoder: nn.Module, latents: Tensor) -> Tensor:
    return decoder(latents)[:, :, ::4, ::4]
