"""The definition of one encoder, as data."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ...errors import ConfigError
from .onnx_weights import OnnxWeights
from .preprocessing import Preprocessing
from .weights import PublishedWeights, TimmWeights


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderEntry:
    """An encoder's architecture, preprocessing, choice of tokens, and weights.

    Attributes:
        architecture: timm's name of the network.
        width: D, the width of a token.
        patch: side of the square of input pixels that one token covers.
        preprocessing: from uint8 images to the network's input.
        weights: where the weights are, and how to read them.
        license: license of the weights.
        verified_by: evidence that the tokens match the published ones.
        depth: number of blocks of a plain vision transformer; None for a hierarchical network.
        stage: index of the feature map that is taken from a hierarchical network; None for a vision transformer.
        has_cls_token: whether a class token comes with the patch tokens.
        final_norm: whether tokens are taken after the final norm.
        layer_rule: how RAEv2 combines several layers: their mean, for DINOv3 plus the mean over the tokens of the last
            one; None if that is unknown.
        recomputes_attention: whether the attention of its last blocks can be computed from stored tokens
            (`last_blocks`): the class token is its only other token.
        image_size: the only input size that the network accepts; None if it accepts others.
        options: arguments of `timm.create_model`.
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
    layer_rule: Literal["mean", "mean and global"] | None = None
    recomputes_attention: bool = False
    image_size: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def last_index(self) -> int:
        """Index of the feature map that is taken by default: that of the last block, or `stage`."""
        return self.depth - 1 if self.depth is not None else int(self.stage or 0)

    def input_size(self, resolution: int) -> int:
        """Return the side of the network's input, in pixels, that gives SiT's token grid or a multiple of it."""
        if self.image_size is not None:
            return self.image_size
        return token_grid(resolution) * self.patch * max(1, round(16 / self.patch))


def token_grid(resolution: int) -> int:
    """Return the side of the token grid of a SiT with 2x2 patches on 8x downsampled latents: one token per 16 pixels.

    Raises:
        ConfigError: the resolution is not a positive multiple of 16.
    """
    if resolution < 16 or resolution % 16:
        raise ConfigError(f"resolution {resolution} is not a positive multiple of 16; choose for example 256 or 512")
    return resolution // 16
