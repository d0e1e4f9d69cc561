"""Configs of RAEv2's diffusion transformer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...converter import unstructure
from ..transformer_config import Count, Probability, Ratio, Time, require, require_multiples


@dataclass(frozen=True, kw_only=True, slots=True)
class RAEv2Config:
    """The sizes of a model; names are those of the published code. Pairs are of the encoder and of the head.

    Raises:
        ConfigError: sizes do not fit each other.
    """

    input_size: Count  # latents are [in_channels, input_size, input_size]
    patch_size: Count = 1
    in_channels: Count
    hidden_size: tuple[Count, Count]
    depth: tuple[Count, Count]  # numbers of blocks
    num_heads: tuple[Count, Count]
    mlp_ratio: Ratio = 4.0
    num_classes: Count = 1000
    class_dropout_prob: Probability = 0.1  # above 0, the null label, which there is in any case, is trained
    base_model_depth: Count = 8  # the internal-guidance head reads the output of this block, counted from 1
    num_t_tokens: Count = 4  # tokens for the time, after the patches
    num_c_tokens: Count = 8  # tokens for the label, after those
    repa_layer_depth: Count | None = None  # the projector reads the output of this block; None for no projector
    z_dim: Count = 768  # width of the patch tokens that the projector predicts
    t_eps: Time = 0.05  # errors of the predicted data are divided by the time, or by this if it is larger

    @property
    def encoder_depth(self) -> int | None:
        """The block that the projector reads, counted from 1; None without a projector."""
        return self.repa_layer_depth

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return unstructure(self)

    def __post_init__(self) -> None:
        require_multiples(self.input_size, self.patch_size, self.hidden_size, self.num_heads)
        for name, block in (("base_model_depth", self.base_model_depth), ("repa_layer_depth", self.repa_layer_depth)):
            require(
                block is None or block <= self.depth[0],
                f"{name} is {block}, but the encoder has only {self.depth[0]} blocks (depth)",
            )


# Hidden sizes, depths and heads, and the depth of the base head (`configs/stage2` of the published code).
RAEV2_PRESETS: dict[str, dict[str, Any]] = {
    # ours, for experiments on a CPU
    "RAEv2-T": {"hidden_size": (192, 256), "depth": (6, 2), "num_heads": (3, 4), "base_model_depth": 2},
    "RAEv2-XL": {"hidden_size": (1440, 2048), "depth": (28, 2), "num_heads": (20, 16)},
}
