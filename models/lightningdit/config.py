"""Configs of LightningDiT."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...converter import unstructure
from ..transformer_config import Count, Probability, Ratio, require_multiples


@dataclass(frozen=True, kw_only=True, slots=True)
class LightningDiTConfig:
    """The sizes of a LightningDiT; names are those of the published code.

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
    use_qknorm: bool = False
    use_swiglu: bool = True
    use_rope: bool = True  # rotary positions in addition to the position embedding
    use_rmsnorm: bool = True
    wo_shift: bool = False

    @property
    def encoder_depth(self) -> None:
        """None: the model has no projectors."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return unstructure(self)

    def __post_init__(self) -> None:
        require_multiples(self.input_size, self.patch_size, [self.hidden_size], [self.num_heads])


# Hidden size, depth and heads (`models/lightningdit.py` of the published code; B and L are SiT's sizes).
LIGHTNINGDIT_PRESETS: dict[str, dict[str, Any]] = {
    "LightningDiT-T/1": {"hidden_size": 192, "depth": 6, "num_heads": 3},  # ours, for experiments on a CPU
    "LightningDiT-B/1": {"hidden_size": 768, "depth": 12, "num_heads": 12},
    "LightningDiT-L/1": {"hidden_size": 1024, "depth": 24, "num_heads": 16},
    "LightningDiT-XL/1": {"hidden_size": 1152, "depth": 28, "num_heads": 16},
}
