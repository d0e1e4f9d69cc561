"""The weights of a SiT as those of diffusers' DiTTransformer2DModel, whose output is the same up to rounding.

Both have the same blocks, but embed times differently: SiT takes t from 0 to 1 and frequencies of 10,000 ** (-i / 128),
diffusers' DiT takes 1000 t and 10,000 ** (-i / 127). On this interval, sines and cosines of the first kind are linear
combinations of those of the second kind, to 3e-9 in float64 and to rounding in float32. The linear layer that follows
absorbs the combination. DiT repeats the embeddings of time and label in every block.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...errors import CheckpointError
from ..layers.embedders import TimestepEmbedder, sincos_position_embedding
from .config import SiTConfig

TIME_SCALE = 1000  # steps of training of diffusers' schedulers: they pass 1000 t
_POINTS = 4001  # times at which the combinations are fitted
_RTOL = 1e-8  # singular values below this fraction of the largest are left out; see the test of the fit

_BLOCK = {  # names in a block: diffusers' and SiT's
    "norm1.linear": "adaLN_modulation.1",
    "attn1.to_out.0": "attn.proj",
    "ff.net.0.proj": "mlp.fc1",
    "ff.net.2": "mlp.fc2",
}
_OUTER = {
    "pos_embed.proj": "x_embedder.proj",
    "proj_out_1": "final_layer.adaLN_modulation.1",
    "proj_out_2": "final_layer.linear",
}


def require_convertible(config: SiTConfig) -> None:
    """Raise CheckpointError for a SiT that DiTTransformer2DModel cannot express."""
    reasons = {
        "it denoises a class token (REG)": config.cls_dim is not None,
        "it normalizes queries and keys (--qk-norm)": config.qk_norm,
        "it has no null label (--cfg-prob 0)": config.class_dropout_prob == 0,
        "its MLPs are not 4 times as wide as its tokens": config.mlp_ratio != 4,
    }
    found = [reason for reason, holds in reasons.items() if holds]
    if found:
        raise CheckpointError(
            f"diffusers' DiTTransformer2DModel cannot express this SiT: {found[0]}; use --to safetensors"
        )


def transformer_config(config: SiTConfig) -> dict[str, Any]:
    """Return the arguments of DiTTransformer2DModel."""
    return {
        "num_attention_heads": config.num_heads,
        "attention_head_dim": config.hidden_size // config.num_heads,
        "in_channels": config.in_channels,
        "out_channels": config.in_channels,
        "num_layers": config.depth,
        "sample_size": config.input_size,
        "patch_size": config.patch_size,
        "num_embeds_ada_norm": config.num_classes,
        "norm_eps": 1e-6,
    }


def transformer_weights(config: SiTConfig, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state dict of DiTTransformer2DModel, given that of a SiT; the projectors are left out.

    Raises:
        CheckpointError: the position embedding is another than the fixed one, which diffusers computes itself.
    """
    positions = sincos_position_embedding(config.hidden_size, config.input_size // config.patch_size)
    if not torch.allclose(weights["pos_embed"], positions, rtol=0, atol=1e-5):
        raise CheckpointError("the position embedding of this SiT is not the published one: use --to safetensors")
    found = _layers(_OUTER, weights)
    embedding = {
        "timestep_embedder.linear_1.weight": _fit_times(weights["t_embedder.mlp.0.weight"]),
        "timestep_embedder.linear_1.bias": weights["t_embedder.mlp.0.bias"],
        "timestep_embedder.linear_2.weight": weights["t_embedder.mlp.2.weight"],
        "timestep_embedder.linear_2.bias": weights["t_embedder.mlp.2.bias"],
        "class_embedder.embedding_table.weight": weights["y_embedder.embedding_table.weight"],
    }
    for number in range(config.depth):
        mine, theirs = f"blocks.{number}.", f"transformer_blocks.{number}."
        layers = _layers({theirs + key: mine + value for key, value in _BLOCK.items()}, weights)
        for kind in ("weight", "bias"):
            parts = weights[f"{mine}attn.qkv.{kind}"].chunk(3)
            layers |= {f"{theirs}attn1.to_{part}.{kind}": value for part, value in zip("qkv", parts, strict=True)}
        found |= layers | {f"{theirs}norm1.emb.{name}": value for name, value in embedding.items()}
    return found


def _layers(names: Mapping[str, str], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        f"{theirs}.{kind}": weights[f"{mine}.{kind}"] for theirs, mine in names.items() for kind in ("weight", "bias")
    }


def _fit_times(weight: Tensor) -> Tensor:
    """Return the weight [D, 256] that gives with diffusers' embedding of 1000 t what `weight` gives with SiT's of t."""
    count = TimestepEmbedder.num_frequencies
    times = torch.linspace(0, 1, _POINTS, dtype=torch.float64)
    mine = _embedded(times, count, count)
    theirs = _embedded(times * TIME_SCALE, count, count - 1)
    combination = torch.linalg.pinv(theirs, rtol=_RTOL) @ mine  # [256, 256]
    fitted: Tensor = (weight.double() @ combination.T).to(weight.dtype)
    return fitted


def _embedded(times: Tensor, count: int, divisor: int) -> Tensor:
    """Return cosines, then sines, [T, 2 * count]."""
    steps = torch.arange(count, dtype=torch.float64) / divisor
    angles = times[:, None] * torch.exp(-math.log(TimestepEmbedder.max_period) * steps)
    return torch.cat([angles.cos(), angles.sin()], dim=1)
