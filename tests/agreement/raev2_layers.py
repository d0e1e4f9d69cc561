"""RAEv2's latents: several layers of DINOv3 and DINOv2 combined, their statistics, and the decoder."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

import torch
from case import Case, Figures, filled
from rae_ditdh import is_input
from rae_stage1 import decoder_of, linear_shapes, noised, normalization_of, on_grid
from safetensors.torch import save_file
from torch import Tensor

from repa_pipe.models.encoders.encoder import Encoder
from repa_pipe.models.encoders.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from repa_pipe.models.encoders.registry import parse_name
from repa_pipe.models.encoders.token_choice import parse_choice
from repa_pipe.stores.tensor_statistics import TensorStatistics

__all__ = ["compute", "is_input", "recognizes"]
DINOV3, DINOV2 = "timm:vit_large_patch16_dinov3_qkvb", "dinov2reg-vit-b"
Shapes = dict[str, tuple[int, ...]]


def recognizes(case: Case) -> bool:
    return "layers" in case.config and "dinov2" in case.config


@torch.no_grad()
def compute(case: Case) -> Figures:
    return _latents(case) | _dinov2(case) | _statistics(case)


def block_shapes(config: dict, inner: int) -> Shapes:
    """Return the shapes of the blocks in Meta's files."""
    width, shapes = config["embed_dim"], {}
    for number in range(config["depth"]):
        block = f"blocks.{number}"
        shapes |= linear_shapes(f"{block}.attn.qkv", width, 3 * width)
        shapes |= linear_shapes(f"{block}.attn.proj", width, width)
        shapes |= linear_shapes(f"{block}.mlp.fc1", width, inner) | linear_shapes(f"{block}.mlp.fc2", inner, width)
        for norm in ("norm1", "norm2"):
            shapes |= {f"{block}.{norm}.weight": (width,), f"{block}.{norm}.bias": (width,)}
        shapes |= {f"{block}.ls{each}.gamma": (width,) for each in (1, 2)}
    return shapes | {
        "norm.weight": (width,),
        "norm.bias": (width,),
        "cls_token": (1, 1, width),
        "mask_token": (1, width),
    }


def _dinov3_file(config: dict) -> dict[str, Tensor]:
    width, patch = config["embed_dim"], config["patch_size"]
    shapes = block_shapes(config, int(width * config["ffn_ratio"]))
    shapes |= {
        "storage_tokens": (1, config["n_storage_tokens"], width),
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
    }
    return {name: torch.zeros(shape) for name, shape in shapes.items()}


def _dinov2_file(config: dict) -> dict[str, Tensor]:
    width = config["embed_dim"]
    shapes = block_shapes(config, 4 * width) | {
        "register_tokens": (1, config["num_register_tokens"], width),
        "pos_embed": (1, 37**2 + 1, width),  # of 518 pixels
        "patch_embed.proj.weight": (width, 3, 14, 14),
        "patch_embed.proj.bias": (width,),
    }
    return {name: torch.zeros(shape) for name, shape in shapes.items()}


def _encoder(case: Case, name: str, config: dict, file: dict[str, Tensor], resolution: int) -> Encoder:
    """Build an encoder of these sizes through the loader of published files."""
    base, _, options = name.partition("@")
    sizes = {"embed_dim": config["embed_dim"], "depth": config["depth"], "num_heads": config["num_heads"]}
    entry, _ = parse_name(base)
    entry = dataclasses.replace(entry, options=sizes, width=config["embed_dim"], depth=config["depth"])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_file(filled(file, case.config["fill_seed"], case.config["fill_keep"]), path)
        model = entry.weights.load(name, entry.architecture, sizes, path)
    choice = parse_choice(name, base, entry, options)
    return Encoder(name, entry, model, choice=choice, resolution=resolution, device=torch.device("cpu"), dtype=None)


def _latents(case: Case) -> Figures:
    config, size = case.config, case.config["resolution"]
    layers, normalization = config["layers"], normalization_of(case)
    file = _dinov3_file(config["encoder"])

    def encoder(options: str) -> Encoder:
        return _encoder(case, f"{DINOV3}@{options}", config["encoder"], file, size)

    def tokens_of(options: str) -> Tensor:
        return encoder(options)(case["images"]).patch_tokens

    listed = ".".join(map(str, sorted(layers)))
    tokens, last = tokens_of(f"layers={listed}"), tokens_of("norm=plain")
    latents = normalization.normalize(on_grid(tokens))
    preprocess = Preprocessing(mean=IMAGENET_MEAN, std=IMAGENET_STD, resize="before")
    other = encoder(f"layers={listed}")._features(preprocess(case["other_images"], size))[0]
    decoder = decoder_of(case, tokens.shape[2], latents.shape[-1], (0.0,) * 3, (1.0,) * 3)
    return {
        "preprocessed_image_0": preprocess(case["images"][:1], size),
        "layer_tokens": torch.stack([tokens_of(f"block={layer + 1}+norm=plain") for layer in sorted(layers)]),
        "tokens": tokens,
        "global_vector": tokens_of(f"block={max(layers) + 1}+norm=plain").mean(dim=1),
        "latents": latents,
        "other_latents": normalization.normalize(other.float()),
        "latents_noised": normalization.normalize(on_grid(noised(case, tokens))),
        "decoded": decoder(normalization.restore(case["latents_to_decode"])),
        "reconstructed_0": decoder(normalization.restore(latents[:1])),
        "single_layer_tokens": tokens_of(f"layers={max(layers)}"),
        "k1_tokens": last,
        "k1_latents": normalization.normalize(on_grid(last)),
    }


def _dinov2(case: Case) -> Figures:
    config = case.config["dinov2"]
    file, stride = _dinov2_file(config), config["tokens_stride"]
    figures = {}
    listed = ".".join(map(str, sorted(config["layers"])))
    for key, options in (("dinov2_layers", f"layers={listed}"), ("dinov2", "norm=plain")):
        encoder = _encoder(case, f"{DINOV2}@{options}", config, file, config["image_size"])
        figures[f"{key}_tokens_strided"] = encoder(case["dinov2_images"]).patch_tokens[:, ::stride]
    return figures


def _statistics(case: Case) -> Figures:
    statistics = TensorStatistics()
    for name in case.matching(r"statistics_batch\d+"):
        statistics.append(case.arrays[name])
    return {"statistics_mean": statistics.mean, "statistics_var": statistics.var}
