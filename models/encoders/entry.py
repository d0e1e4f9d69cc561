"""What is particular about one encoder, as data."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...errors import ConfigError
from .onnx_weights import OnnxWeights
from .preprocessing import Preprocessing
from .weights import PublishedWeights, TimmWeights


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderEntry:
    """An encoder's architecture, its preprocessing, the choice of its tokens, and where its weights are.

    `patch` is the number of input pixels a side that one token stands for; `depth` the number of blocks of a plain
    vision transformer; `stage`, for a hierarchical network instead, the index of the feature map that is taken.
    `final_norm` says whether tokens are taken after the final norm, `has_cls_token` whether a class token comes
    with them, `image_size` the only input size that the network takes, if it takes only one. `license` is that of
    the weights, `verified_by` what shows that the tokens are the published ones.
    """

    architecture: str
    width: int
    patch: int
    preprocessing: Preprocessing
    weights: PublishedWeights | TimmWeights | OnnxWeights
    license: str
    verified_by: str
    depth: int | None = None
    stage: int | None = None
    has_cls_token: bool = True
    final_norm: bool = True
    image_size: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def input_size(self, resolution: int) -> int:
        """Return the side of the network's input, in pixels, that gives SiT's token grid, or a multiple of it."""
        if self.image_size is not None:
            return self.image_size
        return token_grid(resolution) * self.patch * max(1, round(16 / self.patch))


def token_grid(resolution: int) -> int:
    """Return the side of the token grid of a SiT with patches of 2 on latents of an eighth: one token in 16 pixels."""
    if resolution < 16 or resolution % 16:
        raise ConfigError(f"resolution {resolution} is not a positive multiple of 16: use 256 or 512")
    return resolution // 16
