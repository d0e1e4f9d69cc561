"""Configs of DiT-DH."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...converter import unstructure
from ..transformer_config import Count, Probability, Ratio, require_multiples


@dataclass(frozen=True, kw_only=True, slots=True)
class DiTDHConfig:
    """The sizes of a DiT-DH; names are those of the published code. Pairs are of the encoder and of the head.

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
    class_dropout_prob: Probability = 0.1  # above 0, the model has a null label
    use_qknorm: bool = False
    use_swiglu: bool = True
    use_rope: bool = True
    use_rmsnorm: bool = True
    wo_shift: bool = False
    use_pos_embed: bool = True

    @property
    def encoder_depth(self) -> None:
        """None: the model has no projectors."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return unstructure(self)

    def __post_init__(self) -> None:
        require_multiples(self.input_size, self.patch_size, self.hidden_size, self.num_heads)


# Hidden sizes, depths and heads (`configs/stage2` of the published code).
DIT_DH_PRESETS: dict[str, dict[str, Any]] = {
    "DiT-DH-T": {"hidden_size": (192, 256), "depth": (6, 2), "num_heads": (3, 4)},  # ours, for experiments on a CPU
    "DiT-DH-S": {"hidden_size": (384, 2048), "depth": (12, 2), "num_heads": (6, 16)},
    "DiT-DH-B": {"hidden_size": (768, 2048), "depth": (12, 2), "num_heads": (12, 16)},
    "DiT-DH-L": {"hidden_size": (1024, 2048), "depth": (24, 2), "num_heads": (16, 16)},
    "DiT-DH-XL": {"hidden_size": (1152, 2048), "depth": (28, 2), "num_heads": (16, 16)},
}
