"""Inferring a model's architecture and sizes from its weights, since published checkpoints do not record them.

Tensors decide everything but the depths at which heads inside the encoder read, which are taken to be the published
ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError, ConfigError
from .architectures import AnyConfig, count_blocks
from .dit_dh.config import DIT_DH_PRESETS, DiTDHConfig
from .jit.config import JIT_PRESETS, JiTConfig
from .lightningdit.config import LIGHTNINGDIT_PRESETS, LightningDiTConfig
from .raev2.config import RAEV2_PRESETS, RAEv2Config
from .srdit.config import SRDIT_PRESETS, SRDiTConfig

if TYPE_CHECKING:
    from torch import Tensor

Shapes = Mapping[str, tuple[int, ...]]

_HEADS_DEPTH = 8  # the block that RAEv2's base head and projector read, if there are so many


def infer_config(
    state_dict: Mapping[str, Tensor], encoder_depth: int | None = None, num_classes: int | None = None
) -> AnyConfig:
    """Infer the config of the model of any architecture that weights with published names belong to.

    Args:
        state_dict: tensors by name.
        encoder_depth: the block that the projectors of a SiT or JiT read; see `infer_sit_config`. Default for a JiT:
            that of the preset with the same width.
        num_classes: the number of classes of a SiT without the null label.

    Raises:
        CheckpointError: the weights belong to another model.
    """
    shapes = {name: tuple(value.shape) for name, value in state_dict.items()}
    name = _architecture(shapes)
    if name == "JiT":
        from .sit.tensor_names import current_names

        shapes = {current: tuple(value.shape) for current, value in current_names(state_dict).items()}
    if name == "SiT":
        from .sit import infer_sit_config

        return infer_sit_config(state_dict, encoder_depth, num_classes)
    try:
        config = _INFER[name](shapes)
        if isinstance(config, JiTConfig) and encoder_depth is not None:
            return replace(config, encoder_depth=encoder_depth)
        return config
    except ConfigError as error:
        raise CheckpointError(f"the checkpoint holds no valid {name}: {error}") from None
    except (KeyError, ValueError, IndexError, ZeroDivisionError) as error:
        raise CheckpointError(f"the checkpoint does not hold a {name} ({error} is missing or malformed)") from None


def _architecture(shapes: Shapes) -> str:
    if "ctx_embedder.learnable_tokens" in shapes:
        return "RAEv2"
    if "s_embedder.proj.weight" in shapes:
        return "DiT-DH"
    if "x_embedder.proj1.weight" in shapes:
        return "JiT"
    if "fusion_proj.weight" in shapes:
        return "SR-DiT"
    if shapes.keys() & {"feat_rope.freqs_cos", "blocks.0.mlp.w12.weight", "blocks.0.norm1.weight"}:
        return "LightningDiT"
    return "SiT"


def _dit_dh(shapes: Shapes) -> DiTDHConfig:
    widths, sizes = _pair(shapes)
    if widths[0] == widths[1]:
        raise ValueError(f"another width of the head than {widths[0]}")
    owners = [shapes[f"blocks.{block}.attn.proj.weight"][0] for block in range(count_blocks(shapes))]
    return DiTDHConfig(
        **sizes,
        **_labels(shapes, "y_embedder.embedding_table.weight"),
        **_block_options(shapes),
        input_size=math.isqrt(shapes["pos_embed"][1]) * sizes["patch_size"],
        depth=(owners.count(widths[0]), owners.count(widths[1])),
        num_heads=_pair_of_heads(shapes, widths, ("enc_feat_rope", "dec_feat_rope"), DIT_DH_PRESETS),
    )


def _raev2(shapes: Shapes) -> RAEv2Config:
    widths, sizes = _pair(shapes)
    blocks = count_blocks(shapes)
    head = sum(f"blocks.{block}.adaln_modulation.1.weight" in shapes for block in range(blocks))
    depths: dict[str, Any] = {"base_model_depth": min(_HEADS_DEPTH, blocks - head)}
    if "repa_projector.weight" in shapes:
        depths |= {"repa_layer_depth": depths["base_model_depth"], "z_dim": shapes["repa_projector.weight"][0]}
    return RAEv2Config(
        **sizes,
        num_classes=shapes["ctx_embedder.embedding_table.weight"][0] - 1,
        input_size=math.isqrt(shapes["dec_rope.freqs_cos"][0]) * sizes["patch_size"],
        depth=(blocks - head, head),
        num_heads=_pair_of_heads(shapes, widths, ("enc_rope", "dec_rope"), RAEV2_PRESETS),
        num_t_tokens=shapes["t_embedder.learnable_tokens"][0],
        num_c_tokens=shapes["ctx_embedder.learnable_tokens"][0],
        **depths,
    )


def _lightningdit(shapes: Shapes) -> LightningDiTConfig:
    width, channels, patch_size, _ = shapes["x_embedder.proj.weight"]
    return LightningDiTConfig(
        in_channels=channels,
        patch_size=patch_size,
        hidden_size=width,
        input_size=math.isqrt(shapes["pos_embed"][1]) * patch_size,
        depth=count_blocks(shapes),
        num_heads=_heads(
            shapes,
            width,
            "feat_rope",
            {each["hidden_size"]: each["num_heads"] for each in LIGHTNINGDIT_PRESETS.values()},
        ),
        **_labels(shapes, "y_embedder.embedding_table.weight"),
        **_block_options(shapes),
    )


def _jit(shapes: Shapes) -> JiTConfig:
    from .sit.infer_config import projector_sizes

    bottleneck, channels, patch_size, _ = shapes["x_embedder.proj1.weight"]
    width = shapes["x_embedder.proj2.weight"][0]
    preset = next((each for each in JIT_PRESETS.values() if each["hidden_size"] == width), None)
    if preset is None:
        raise ValueError(f"a width of {', '.join(str(each['hidden_size']) for each in JIT_PRESETS.values())}")
    input_size = math.isqrt(shapes["pos_embed"][1]) * patch_size
    return JiTConfig(
        in_channels=channels,
        patch_size=patch_size,
        hidden_size=width,
        input_size=input_size,
        depth=count_blocks(shapes),
        num_heads=width // shapes["blocks.0.attn.q_norm.weight"][0],
        bottleneck_dim=bottleneck,
        in_context_len=shapes.get("in_context_posemb", (1, 0))[1],
        in_context_start=preset["in_context_start"],
        encoder_depth=preset["encoder_depth"],
        noise_scale=max(1.0, input_size / 256),  # published
        **_labels(shapes, "y_embedder.embedding_table.weight"),
        **projector_sizes(shapes),
    )


def _srdit(shapes: Shapes) -> SRDiTConfig:
    width, channels, patch_size, _ = shapes["x_embedder.proj.weight"]
    known = {each["hidden_size"]: each["num_heads"] for each in SRDIT_PRESETS.values()}
    projectors = len({name.split(".")[1] for name in shapes if name.startswith("projectors.")})
    projector = {"projector_dim": shapes["projectors.0.0.weight"][0]} if projectors else {}
    return SRDiTConfig(
        in_channels=channels,
        patch_size=patch_size,
        hidden_size=width,
        input_size=math.isqrt(shapes["pos_embed"][1] - 1) * patch_size,
        depth=count_blocks(shapes),
        num_heads=_heads(shapes, width, "feat_rope", known),
        mlp_ratio=shapes["blocks.0.mlp.fc1.weight"][0] / width,
        cls_dim=shapes["cls_projectors2.weight"][1],
        z_dims=tuple(shapes[f"projectors.{number}.4.weight"][0] for number in range(projectors)),
        qk_norm="blocks.0.attn.q_norm.weight" in shapes,
        **projector,
        **_labels(shapes, "y_embedder.embedding_table.weight"),
    )


def _pair(shapes: Shapes) -> tuple[tuple[int, int], dict[str, Any]]:
    """Return the widths of encoder and head, and the sizes that follow from their embeddings."""
    narrow, channels, patch_size, _ = shapes["s_embedder.proj.weight"]
    widths = narrow, shapes["x_embedder.proj.weight"][0]
    return widths, {"hidden_size": widths, "in_channels": channels, "patch_size": patch_size}


def _labels(shapes: Shapes, table: str) -> dict[str, Any]:
    """Return the number of classes; the last row is the null label, which all published models have."""
    return {"num_classes": shapes[table][0] - 1, "class_dropout_prob": 0.1}


def _block_options(shapes: Shapes) -> dict[str, Any]:
    width = shapes["blocks.0.attn.proj.weight"][0]
    return {
        "use_rmsnorm": "blocks.0.norm1.weight" in shapes,
        "use_swiglu": "blocks.0.mlp.w12.weight" in shapes,
        "use_qknorm": "blocks.0.attn.q_norm.weight" in shapes,
        "wo_shift": shapes["blocks.0.adaLN_modulation.1.weight"][0] == 4 * width,
    }


def _pair_of_heads(
    shapes: Shapes, widths: tuple[int, int], tables: tuple[str, str], presets: Mapping[str, Mapping[str, Any]]
) -> tuple[int, int]:
    """Return the numbers of heads of encoder and head."""
    narrow, wide = (
        {preset["hidden_size"][part]: preset["num_heads"][part] for preset in presets.values()} for part in (0, 1)
    )
    return _heads(shapes, widths[0], tables[0], narrow), _heads(shapes, widths[1], tables[1], wide)


def _heads(shapes: Shapes, width: int, table: str, known: Mapping[int, int]) -> int:
    """Return the number of heads: from the table of rotary positions, else that of the preset of this width."""
    rotary = shapes.get(f"{table}.freqs_cos")
    if rotary is not None:
        return width // rotary[1]
    if width not in known:
        raise ValueError(f"'{table}.freqs_cos', for a width of {width}")
    return known[width]


_INFER: Mapping[str, Callable[[Shapes], AnyConfig]] = {
    "DiT-DH": _dit_dh,
    "LightningDiT": _lightningdit,
    "RAEv2": _raev2,
    "JiT": _jit,
    "SR-DiT": _srdit,
}
