"""The normalization of latents that a published checkpoint was trained with.

Of a VAE's latents: the VAE, and scale and bias per channel. Of an encoder's tokens: mean and variance per position.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...converter import shown
from ...errors import CheckpointError, WeightsError
from ...models.weight_files import read_checkpoint
from .token_statistics import read_normalization

if TYPE_CHECKING:
    from torch import Tensor

    from ...diffusion.normalization import Normalization

LATENTS_SCALE = 0.18215  # scale of Stability's VAEs in REPA's trainer; the bias is 0
_SRDIT_SCALE = 0.3099  # of SR-DiT's VAE, which REPA-E tuned; the bias is 0
_SCALE_AND_BIAS = ("latents_scale", "latents_bias")  # REPA-E and iREPA: (z - bias) · scale
_MEAN_AND_STD = ("mean", "std")  # LightningDiT: (z - mean) / std
_RAE_EPS = 1e-5


@dataclass(frozen=True, slots=True)
class Latents:
    """A model's latents: `(mean + std · noise) · scale + bias` of the VAE's moments, with one number per channel."""

    vae: str | None  # None if it is not known
    scale: tuple[float, ...]
    bias: tuple[float, ...]


def repa_latents(channels: int) -> Latents:
    """Return the latents of REPA and REG, with the VAE that their generators decode with."""
    return Latents("sd-vae-ft-ema", (LATENTS_SCALE,) * channels, (0.0,) * channels)


def srdit_latents(channels: int) -> Latents:
    """Return the latents of SR-DiT, whose VAE has no name that `load_vae` accepts."""
    return Latents(None, (_SRDIT_SCALE,) * channels, (0.0,) * channels)


def read_latents(path: str, shape: tuple[int, int, int], vae: str | None) -> Latents | Normalization:
    """Read a published file of statistics: of a VAE's latents (REPA-E, iREPA, LightningDiT), or of tokens (RAE).

    Args:
        path: the file.
        shape: `(C, h, w)` of the latents.
        vae: the VAE that its authors name, if they do.

    Raises:
        WeightsError: the file is missing or damaged, or holds no statistics of such latents.
        CheckpointError: it holds those of other tokens.
    """
    tensors = read_checkpoint(path)
    if set(_MEAN_AND_STD) <= tensors.keys():
        mean, std = _per_channel(tensors, _MEAN_AND_STD, path, shape[0])
        return _latents(vae, [1 / each for each in std], mean)
    if tensors.keys() & {"mean", "var"}:
        return _token_normalization(tensors, shape, path)
    scale, bias = _per_channel(tensors, _SCALE_AND_BIAS, path, shape[0])
    return _latents(vae, scale, bias)


def latents_of_batch_norm(tensors: Mapping[str, Tensor], channels: int, path: Path) -> Latents:
    """Return the latents of REPA-E's model, whose batch norm holds mean and variance `[C]`; decoding adds no epsilon.

    Raises:
        CheckpointError: the batch norm is not that of so many channels, or a variance is not above 0.
    """
    names = ("bn.running_mean", "bn.running_var")
    numbers: list[list[float]] = [tensors[name].flatten().tolist() if name in tensors else [] for name in names]
    if any(len(each) != channels or not all(map(math.isfinite, each)) for each in numbers) or min(numbers[1]) <= 0:
        raise CheckpointError(
            f"{path}: bn: expected running_mean and running_var of {channels} channels, finite and with variances "
            "above 0"
        )
    return _latents(None, [each**-0.5 for each in numbers[1]], numbers[0])


def _latents(vae: str | None, scale: Sequence[float], mean: Sequence[float]) -> Latents:
    return Latents(vae, tuple(scale), tuple(-center * factor for center, factor in zip(mean, scale, strict=True)))


def _token_normalization(tensors: dict[str, Tensor], shape: tuple[int, int, int], path: str) -> Normalization:
    """Return RAE's normalization; a mean that is not in the file is 0, a variance 1."""
    import torch

    found = {name: tensors[name].float() for name in ("mean", "var") if name in tensors}
    return read_normalization(
        {"mean": torch.zeros(1, 1, 1), "var": torch.ones(1, 1, 1), "eps": _RAE_EPS} | found, shape, Path(path)
    )


def _per_channel(
    tensors: dict[str, Tensor], keys: tuple[str, str], path: str, channels: int
) -> list[tuple[float, ...]]:
    """Return both statistics."""
    return [_numbers(tensors, key, keys, path, channels) for key in keys]


def _numbers(
    tensors: dict[str, Tensor], key: str, keys: tuple[str, str], path: str, channels: int
) -> tuple[float, ...]:
    import torch

    expected = f"latents statistics {path}: expected {' and '.join(keys)} with {channels} values each"
    if key not in tensors or tensors[key].numel() != channels:
        raise WeightsError(f"{expected}, found {tensors[key].numel() if key in tensors else 0} for {key}")
    if not tensors[key].is_floating_point() or tensors[key].layout != torch.strided or tensors[key].is_meta:
        raise WeightsError(f"{expected}, found {tensors[key].dtype} for {key}")
    values = tuple(map(float, tensors[key].flatten().tolist()))
    if not all(map(math.isfinite, values)) or (key in {"latents_scale", "std"} and 0 in values):
        raise WeightsError(f"{expected}, finite and with a scale other than 0, found {shown(values)} for {key}")
    return values
