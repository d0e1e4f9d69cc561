"""Inferring a SiT's config from its weights, since published checkpoints do not record it."""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ...errors import CheckpointError, ConfigError
from .config import SIT_PRESETS, SiTConfig
from .tensor_names import current_names

_DEFAULT_ENCODER_DEPTH = 8  # REPA's; the block that the projectors read does not affect the velocity

Shapes = Mapping[str, tuple[int, ...]]


def infer_sit_config(
    state_dict: Mapping[str, Tensor], encoder_depth: int | None = None, num_classes: int | None = None
) -> SiTConfig:
    """Infer the config of the SiT that weights with REPA's, iREPA's or REG's published names belong to.

    All other sizes follow from tensor shapes. The number of heads is that of the preset with the same width.

    Args:
        state_dict: tensors by name.
        encoder_depth: the block that the projectors read. Default: 8; in files with the older `decoder_blocks` names it
            is always the number of `blocks`.
        num_classes: the number of classes without the null label. Default: there is a null label.

    Raises:
        CheckpointError: the weights belong to another model.
    """
    shapes = {name: tuple(value.shape) for name, value in current_names(state_dict).items()}
    try:
        sizes = _trunk(shapes, num_classes) | projector_sizes(shapes)
    except (KeyError, ValueError, IndexError) as error:
        raise CheckpointError(
            f"the checkpoint does not hold a SiT with REPA's tensor names ({error} is missing or malformed)"
        ) from None
    _require_velocity_alone(shapes, sizes)
    blocks, decoder_blocks = (_count(shapes, kind) for kind in ("blocks", "decoder_blocks"))
    depth = blocks + decoder_blocks
    encoder_depth = blocks if decoder_blocks else encoder_depth or min(_DEFAULT_ENCODER_DEPTH, depth)
    heads = _num_heads(sizes["hidden_size"])
    try:
        return SiTConfig(depth=depth, encoder_depth=encoder_depth, num_heads=heads, **sizes)
    except ConfigError as error:
        raise CheckpointError(f"the checkpoint holds no valid SiT: {error}") from None


def require_sizes(config: SiTConfig, state_dict: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError unless the weights are those of a SiT of these sizes, and its heads those of a preset.

    A model of other sizes would need any amount of memory before its weights turn out not to fit.
    """
    names = current_names(state_dict, config.encoder_depth)
    shapes = {name: tuple(value.shape) for name, value in names.items()}
    try:
        found = _trunk(shapes, config.num_classes) | projector_sizes(shapes) | {"depth": _count(shapes, "blocks")}
    except (KeyError, ValueError, IndexError) as error:
        raise CheckpointError(f"the weights are not those of a SiT ({error} is missing or malformed)") from None
    with_null_label = found.pop("class_dropout_prob") > 0
    heads = _heads_by_width().get(config.hidden_size, config.num_heads)
    pairs = {name: (value, getattr(config, name)) for name, value in found.items()}
    pairs |= {"num_heads": (heads, config.num_heads)}
    pairs |= {"null label": (with_null_label, config.class_dropout_prob > 0)}
    hidden, recorded = (config.hidden_size * ratio // 1 for ratio in pairs["mlp_ratio"])
    pairs["mlp_ratio"] = hidden, recorded
    different = [
        f"{name}: {mine} in the weights, {theirs} recorded" for name, (mine, theirs) in pairs.items() if mine != theirs
    ]
    if different:
        raise CheckpointError(f"its weights are not those of the recorded model ({'; '.join(different[:3])})")


def _trunk(shapes: Shapes, num_classes: int | None) -> dict[str, Any]:
    """Return the sizes of everything but the projectors."""
    hidden_size, in_channels, patch_size, _ = shapes["x_embedder.proj.weight"]
    cls_dim = shapes["cls_projectors2.weight"][1] if "cls_projectors2.weight" in shapes else None
    tokens = shapes["pos_embed"][1] - (cls_dim is not None)
    if math.isqrt(tokens) ** 2 != tokens:
        raise ValueError("the square grid of 'pos_embed'")
    rows = shapes["y_embedder.embedding_table.weight"][0]
    has_null_label = rows != num_classes
    return {
        "input_size": math.isqrt(tokens) * patch_size,
        "patch_size": patch_size,
        "in_channels": in_channels,
        "hidden_size": hidden_size,
        "mlp_ratio": shapes["blocks.0.mlp.fc1.weight"][0] / hidden_size,
        "num_classes": rows - 1 if has_null_label else rows,  # the last row is the null label
        "class_dropout_prob": 0.1 if has_null_label else 0.0,
        "qk_norm": "blocks.0.attn.q_norm.weight" in shapes,
        "cls_dim": cls_dim,
    }


def projector_sizes(shapes: Shapes) -> dict[str, Any]:
    """Return the widths of the encoders, and the kind and size of the projectors."""
    count = _count(shapes, "projectors")
    if "projectors.0.projection_layer.weight" in shapes:
        weights = [shapes[f"projectors.{i}.projection_layer.weight"] for i in range(count)]
        widths = tuple(width for width, *_ in weights)
        return {"z_dims": widths, "projector": "conv", "projector_kernel_size": weights[0][-1]}
    widths = tuple(shapes[f"projectors.{i}.4.weight"][0] for i in range(count))
    return {"z_dims": widths, "projector_dim": shapes["projectors.0.0.weight"][0]} if widths else {"z_dims": ()}


def _require_velocity_alone(shapes: Shapes, sizes: Mapping[str, Any]) -> None:
    """Raise CheckpointError for the models of SiT's and DiT's own code, which also predict a variance."""
    outputs = shapes.get("final_layer.linear.weight", (0,))[0]
    if outputs == 2 * sizes["patch_size"] ** 2 * sizes["in_channels"]:
        raise CheckpointError(
            "the model also predicts a variance (learn_sigma), as those of the original SiT and DiT code do, in which "
            "time runs from noise to data or counts 1,000 diffusion steps: it cannot be sampled here; expected a "
            "checkpoint of REPA, iREPA, REG or repa-pipe"
        )


def _heads_by_width() -> dict[int, int]:
    presets = [preset(input_size=8, in_channels=4) for preset in SIT_PRESETS.values()]
    return {preset.hidden_size: preset.num_heads for preset in presets}


def _num_heads(hidden_size: int) -> int:
    heads = _heads_by_width()
    if hidden_size not in heads:
        known = ", ".join(map(str, sorted(heads)))
        raise CheckpointError(f"the checkpoint holds a SiT of width {hidden_size}; expected one of {known}")
    return heads[hidden_size]


def _count(shapes: Shapes, kind: str) -> int:
    return len({name.split(".")[1] for name in shapes if name.startswith(f"{kind}.")})
