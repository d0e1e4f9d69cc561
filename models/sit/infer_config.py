"""Inferring a SiT's config from its weights, since published checkpoints do not record it."""

import math
from collections.abc import Mapping

from torch import Tensor

from ...errors import CheckpointError
from .config import SIT_PRESETS, SiTConfig

_DEFAULT_ENCODER_DEPTH = 8  # REPA's; the block that the projectors read does not affect the velocity


def infer_sit_config(state_dict: Mapping[str, Tensor], encoder_depth: int | None = None) -> SiTConfig:
    """Infer the config of the SiT that weights with REPA's published names belong to.

    All sizes but two follow from tensor shapes. The number of heads is that of the preset with the same width. The
    encoder depth is `encoder_depth` if given, else 8; in files with the older `decoder_blocks` names it is always the
    number of `blocks`.

    Raises:
        CheckpointError: the weights belong to another model.
    """
    tensors = {name.removeprefix("module."): value for name, value in state_dict.items()}
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    try:
        hidden_size, in_channels, patch_size, _ = shapes["x_embedder.proj.weight"]
        tokens = shapes["pos_embed"][1]
        rows = shapes["y_embedder.embedding_table.weight"][0]
        mlp_ratio = shapes["blocks.0.mlp.fc1.weight"][0] / hidden_size
        depths = {kind: _count(shapes, kind) for kind in ("blocks", "decoder_blocks", "projectors")}
        z_dims = tuple(shapes[f"projectors.{i}.4.weight"][0] for i in range(depths["projectors"]))
        projector_dim = shapes["projectors.0.0.weight"][0] if z_dims else 2048
    except (KeyError, ValueError, IndexError) as error:
        raise CheckpointError(
            f"the checkpoint does not hold a SiT with REPA's tensor names ({error} is missing or malformed)"
        ) from None
    heads = {preset(input_size=8, in_channels=4).hidden_size: preset for preset in SIT_PRESETS.values()}
    if hidden_size not in heads:
        known = ", ".join(map(str, sorted(heads)))
        raise CheckpointError(f"the checkpoint holds a SiT of width {hidden_size}; expected one of {known}")
    if depths["decoder_blocks"]:
        encoder_depth = depths["blocks"]
    depth = depths["blocks"] + depths["decoder_blocks"]
    return SiTConfig(
        input_size=math.isqrt(tokens) * patch_size,
        patch_size=patch_size,
        in_channels=in_channels,
        hidden_size=hidden_size,
        depth=depth,
        num_heads=heads[hidden_size](input_size=8, in_channels=4).num_heads,
        mlp_ratio=mlp_ratio,
        num_classes=rows - 1,  # the last row is the null label
        encoder_depth=encoder_depth or min(_DEFAULT_ENCODER_DEPTH, depth),
        z_dims=z_dims,
        projector_dim=projector_dim,
        qk_norm="blocks.0.attn.q_norm.weight" in shapes,
    )


def _count(shapes: Mapping[str, tuple[int, ...]], kind: str) -> int:
    return len({name.split(".")[1] for name in shapes if name.startswith(f"{kind}.")})
