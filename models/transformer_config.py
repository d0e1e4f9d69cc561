"""What the configs of all diffusion transformers have in common. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec

from ..errors import ConfigError

Count = Annotated[int, msgspec.Meta(ge=1)]
Ratio = Annotated[float, msgspec.Meta(ge=0.01, le=1000)]
Probability = Annotated[float, msgspec.Meta(ge=0, le=1)]
Time = Annotated[float, msgspec.Meta(gt=0, le=1)]


def require(condition: bool, message: str) -> None:
    """Raise ConfigError with the message unless the condition holds."""
    if not condition:
        raise ConfigError(message)


def require_multiples(input_size: int, patch_size: int, widths: Sequence[int], num_heads: Sequence[int]) -> None:
    """Raise ConfigError unless patches fill the latents, and heads of a multiple of four channels fill the widths."""
    require(input_size % patch_size == 0, f"input_size {input_size} is not a multiple of patch_size {patch_size}")
    for width, heads in zip(widths, num_heads, strict=True):
        require(
            width % (4 * heads) == 0,
            f"hidden_size {width} with num_heads {heads}: expected a multiple of four channels per head, which rotary "
            "positions need",
        )
