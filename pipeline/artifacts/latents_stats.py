"""The normalization of latents that a published checkpoint was trained with: VAE, scale and bias per channel."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...converter import shown
from ...errors import WeightsError
from ...models.weight_files import read_checkpoint

if TYPE_CHECKING:
    from torch import Tensor

LATENTS_SCALE = 0.18215  # scale of Stability's VAEs in REPA's trainer; the bias is 0
_KEYS = ("latents_scale", "latents_bias")


@dataclass(frozen=True, slots=True)
class Latents:
    """A model's latents: `(mean + std · noise) · scale + bias` of the VAE's moments, with one number per channel."""

    vae: str
    scale: tuple[float, ...]
    bias: tuple[float, ...]


def repa_latents(channels: int) -> Latents:
    """Return the latents of REPA and REG, with the VAE that their generators decode with."""
    return Latents("sd-vae-ft-ema", (LATENTS_SCALE,) * channels, (0.0,) * channels)


def irepa_latents(path: str, channels: int) -> Latents:
    """Read the statistics that iREPA and REPA-E publish next to a VAE; their latents are `(z - bias) · scale`.

    Raises:
        WeightsError: the file is missing, damaged, or does not hold both statistics for that number of channels.
    """
    tensors = read_checkpoint(path)
    scale, bias = (_numbers(tensors, key, path, channels) for key in _KEYS)
    return Latents("sd-vae-ft-mse", scale, tuple(-b * s for b, s in zip(bias, scale, strict=True)))


def _numbers(tensors: dict[str, Tensor], key: str, path: str, channels: int) -> tuple[float, ...]:
    import torch

    expected = f"latents statistics {path}: expected {' and '.join(_KEYS)} with {channels} values each"
    if key not in tensors or tensors[key].numel() != channels:
        raise WeightsError(f"{expected}, found {tensors[key].numel() if key in tensors else 0} for {key}")
    if not tensors[key].is_floating_point() or tensors[key].layout != torch.strided or tensors[key].is_meta:
        raise WeightsError(f"{expected}, found {tensors[key].dtype} for {key}")
    values = tuple(map(float, tensors[key].flatten().tolist()))
    if not all(map(math.isfinite, values)) or (key == _KEYS[0] and 0 in values):
        raise WeightsError(f"{expected}, finite and with a scale other than 0, found {shown(values)} for {key}")
    return values
