"""Configs of SR-DiT."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...converter import unstructure
from ..transformer_config import Count, Probability, Ratio, require, require_multiples

TOKEN_DROP = 0.75  # fraction of the tokens that the middle blocks do not see in training, as published
PATH_DROP = 0.05  # probability that their output is dropped in a training step, as published


@dataclass(frozen=True, kw_only=True, slots=True)
class SRDiTConfig:
    """The sizes of an SR-DiT; names are those of the published code where it has them.

    Raises:
        ConfigError: sizes do not fit each other.
    """

    input_size: Count  # latents are [in_channels, input_size, input_size]
    patch_size: Count = 1
    in_channels: Count
    hidden_size: Count
    depth: Count  # number of blocks
    num_heads: Count
    mlp_ratio: Ratio = 4.0
    num_classes: Count = 1000
    class_dropout_prob: Probability = 0.1  # above 0, the model has a null label
    cls_dim: Count  # width of the class token that is denoised with the latents
    z_dims: tuple[Count, ...] = ()  # width of each encoder's tokens, with one projector each
    projector_dim: Count = 2048
    qk_norm: bool = True
    encoder_blocks: Count = 2  # blocks before the routing; the projectors read the output of the last
    decoder_blocks: Count = 2  # blocks after the routing

    @property
    def encoder_depth(self) -> int | None:
        """The block that the projectors read, counted from 1; None without projectors."""
        return self.encoder_blocks if self.z_dims else None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return unstructure(self)

    def __post_init__(self) -> None:
        require_multiples(self.input_size, self.patch_size, [self.hidden_size], [self.num_heads])
        outer = self.encoder_blocks + self.decoder_blocks
        require(
            self.depth > outer,
            f"depth is {self.depth}; expected more than the {outer} blocks before and after the routing",
        )


# Hidden size, depth and heads (`models/sit.py` of the published code).
SRDIT_PRESETS: dict[str, dict[str, Any]] = {
    "SRDiT-T/1": {"hidden_size": 192, "depth": 6, "num_heads": 3},  # ours, for experiments on a CPU
    "SRDiT-B/1": {"hidden_size": 768, "depth": 12, "num_heads": 12},
}
