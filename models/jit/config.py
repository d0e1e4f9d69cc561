"""Configs of JiT."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ...converter import unstructure
from ..transformer_config import Count, Probability, Ratio, Time, require, require_multiples


@dataclass(frozen=True, kw_only=True, slots=True)
class JiTConfig:
    """The sizes of a JiT; names are those of the published code, and for projectors those of `SiTConfig`.

    Raises:
        ConfigError: sizes do not fit each other.
    """

    input_size: Count  # images are [in_channels, input_size, input_size], from -1 to 1
    patch_size: Count = 16
    in_channels: Count = 3
    hidden_size: Count
    depth: Count  # number of blocks
    num_heads: Count
    mlp_ratio: Ratio = 4.0
    num_classes: Count = 1000
    class_dropout_prob: Probability = 0.1  # above 0, the null label, which there is in any case, is trained
    bottleneck_dim: Count = 128  # channels between the two layers of the patch embedding
    in_context_len: int = 32  # tokens for the label
    in_context_start: int = 4  # blocks without them
    encoder_depth: Count = 4  # the projectors read the output of this block, counted from 1
    z_dims: tuple[Count, ...] = ()  # width of each encoder's patch tokens, with one projector each
    projector: Literal["mlp", "conv"] = "mlp"
    projector_dim: Count = 2048  # inside "mlp"
    projector_kernel_size: Count = 3  # of "conv"
    t_eps: Time = 0.05  # errors of the predicted image are divided by the time, or by this if it is larger
    noise_scale: Ratio = 1.0  # standard deviation of the noise; published: image size / 256

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return unstructure(self)

    def __post_init__(self) -> None:
        require_multiples(self.input_size, self.patch_size, [self.hidden_size], [self.num_heads])
        require(self.in_context_len >= 0, f"in_context_len is {self.in_context_len}; expected at least 0")
        require(
            0 <= self.in_context_start < self.depth,
            f"in_context_start is {self.in_context_start}; expected 0 or more, and fewer than the {self.depth} blocks "
            "(depth)",
        )
        require(
            self.encoder_depth <= self.depth,
            f"encoder_depth is {self.encoder_depth}, but the model has only {self.depth} blocks (depth)",
        )
        kernel = self.projector_kernel_size
        require(kernel % 2 == 1, f"projector_kernel_size is {kernel}; expected an odd number, which keeps the grid")


# Sizes of the published code (`model_jit.py`). Only B has a published encoder depth (of iREPA); L and H have 8, as the
# larger models of REPA.
JIT_PRESETS: dict[str, dict[str, Any]] = {
    # ours, for experiments on a CPU
    "JiT-T/16": {
        "hidden_size": 192,
        "depth": 6,
        "num_heads": 3,
        "bottleneck_dim": 64,
        "in_context_len": 8,
        "in_context_start": 2,
        "encoder_depth": 2,
    },
    "JiT-B/16": {
        "hidden_size": 768,
        "depth": 12,
        "num_heads": 12,
        "bottleneck_dim": 128,
        "in_context_start": 4,
        "encoder_depth": 4,
    },
    "JiT-L/16": {
        "hidden_size": 1024,
        "depth": 24,
        "num_heads": 16,
        "bottleneck_dim": 128,
        "in_context_start": 8,
        "encoder_depth": 8,
    },
    "JiT-H/16": {
        "hidden_size": 1280,
        "depth": 32,
        "num_heads": 16,
        "bottleneck_dim": 256,
        "in_context_start": 10,
        "encoder_depth": 8,
    },
}
