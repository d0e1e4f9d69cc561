"""Configs of SiT models: fields, validation and the published presets."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

from ...converter import shown, structure, unstructure
from ...errors import ConfigError

_PROJECTORS = ("mlp", "conv")


@dataclass(frozen=True, kw_only=True, slots=True)
class SiTConfig:
    """The sizes of a SiT.

    Raises:
        ConfigError: a field has a value that fits no model. The message names the field.
    """

    input_size: int  # latents are [in_channels, input_size, input_size]
    patch_size: int  # side of the square of latents that becomes one token
    in_channels: int
    hidden_size: int
    depth: int  # number of blocks
    num_heads: int
    mlp_ratio: float = 4.0
    num_classes: int = 1000
    class_dropout_prob: float = 0.1  # above 0, the model has a null label
    encoder_depth: int = 8  # the projectors read the output of this block, counted from 1
    z_dims: tuple[int, ...] = (768,)  # width of each encoder's patch tokens, with one projector each; () for none
    projector_dim: int = 2048
    qk_norm: bool = False
    cls_dim: int | None = None  # width of the class token that is denoised with the latents (REG); None for none
    projector: str = "mlp"  # or "conv": one convolution over the token grid (iREPA)
    projector_kernel_size: int = 3  # side of the convolution of "conv"; 1 is a linear map per token

    def __post_init__(self) -> None:
        self._validate_fields()
        for name, divisor in (("input_size", "patch_size"), ("hidden_size", "num_heads")):
            size, part = getattr(self, name), getattr(self, divisor)
            _require(size % part == 0, f"{name} {size} is not a multiple of {divisor} {part}")
        _require(
            self.hidden_size % 4 == 0,
            f"hidden_size is {self.hidden_size}; the position embedding needs a multiple of 4",
        )
        _require(
            self.cls_dim is None or self.projector == "mlp",
            "projector is 'conv' and cls_dim is set: a class token has no position in the grid that is convolved",
        )
        _require(
            self.encoder_depth <= self.depth,
            f"encoder_depth is {self.encoder_depth}, but the model has only {self.depth} blocks (depth)",
        )

    def _validate_fields(self) -> None:
        """Check type and range of each field on its own."""
        _require(isinstance(self.z_dims, tuple), f"z_dims is {shown(self.z_dims)}; expected a tuple of widths")
        integers = {field.name: getattr(self, field.name) for field in fields(self) if field.type is int}
        integers |= {"cls_dim": self.cls_dim} if self.cls_dim is not None else {}
        integers |= {f"z_dims[{number}]": width for number, width in enumerate(self.z_dims)}
        for name, value in integers.items():
            _require(
                isinstance(value, int) and not isinstance(value, bool) and value >= 1,
                f"{name} is {shown(value)}; expected an integer of at least 1",
            )
        for name, low, high in (("mlp_ratio", 0.01, math.inf), ("class_dropout_prob", 0.0, 1.0)):
            value = getattr(self, name)
            _require(
                isinstance(value, int | float) and low <= value <= high,
                f"{name} is {shown(value)}; expected a number from {low} to {high}",
            )
        _require(isinstance(self.qk_norm, bool), f"qk_norm is {shown(self.qk_norm)}; expected True or False")
        _require(
            self.projector in _PROJECTORS, f"projector is {shown(self.projector)}; expected {' or '.join(_PROJECTORS)}"
        )
        kernel = self.projector_kernel_size
        _require(kernel % 2 == 1, f"projector_kernel_size is {kernel}; expected an odd number, which keeps the grid")

    @property
    def null_label(self) -> int:
        """The label that stands for no class; raises ConfigError if the model has none."""
        _require(
            self.class_dropout_prob > 0,
            "class_dropout_prob is 0, so the model has no null label, which guidance and label dropout need",
        )
        return self.num_classes

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return unstructure(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "SiTConfig":
        """Build a config from the result of `to_dict`.

        Raises:
            ConfigError: a field is unknown or missing, or has an invalid value.
        """
        return structure(values, cls, "SiTConfig")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def _preset(patch_size: int, sizes: tuple[int, int, int, int]) -> "partial[SiTConfig]":
    hidden_size, depth, num_heads, encoder_depth = sizes
    return partial(
        SiTConfig,
        patch_size=patch_size,
        hidden_size=hidden_size,
        depth=depth,
        num_heads=num_heads,
        encoder_depth=encoder_depth,
    )


# Hidden size, depth, heads and encoder depth per family. S, B, L and XL are SiT's own (arXiv 2401.08740). REPA aligns
# after block 8 in L and XL and after block 4 in B; S has the depth of B and uses B's encoder depth. T is not published:
# it is small enough for experiments on a CPU.
_FAMILIES = {
    "T": (192, 6, 3, 2),
    "S": (384, 12, 6, 4),
    "B": (768, 12, 12, 4),
    "L": (1024, 24, 16, 8),
    "XL": (1152, 28, 16, 8),
}

# SIT_PRESETS["SiT-XL/2"](input_size=32, in_channels=4, ...) is a SiTConfig; further arguments override the preset's.
SIT_PRESETS = {
    f"SiT-{family}/{patch_size}": _preset(patch_size, sizes)
    for family, sizes in _FAMILIES.items()
    for patch_size in (1, 2, 4, 8)
}


def sit_config(
    name: str,
    *,
    input_size: int,
    in_channels: int,
    num_classes: int = 1000,
    z_dims: tuple[int, ...] = (768,),
    encoder_depth: int | None = None,
    class_dropout_prob: float = 0.1,
    projector_dim: int = 2048,
    qk_norm: bool = False,
    projector: str = "mlp",
    projector_kernel_size: int = 3,
    cls_dim: int | None = None,
) -> SiTConfig:
    """Return a preset's config for latents of this size.

    Args:
        name: a key of `SIT_PRESETS`. The other arguments are fields of `SiTConfig`.
        encoder_depth: None for the depth that REPA published for the preset.

    Raises:
        ConfigError: the name is unknown, or a field has an invalid value.
    """
    _require(name in SIT_PRESETS, f"unknown model {shown(name)}; expected one of {', '.join(SIT_PRESETS)}")
    preset = SIT_PRESETS[name]
    if encoder_depth is not None:
        preset = partial(preset, encoder_depth=encoder_depth)
    return preset(
        input_size=input_size,
        in_channels=in_channels,
        num_classes=num_classes,
        z_dims=z_dims,
        class_dropout_prob=class_dropout_prob,
        projector_dim=projector_dim,
        qk_norm=qk_norm,
        projector=projector,
        projector_kernel_size=projector_kernel_size,
        cls_dim=cls_dim,
    )
