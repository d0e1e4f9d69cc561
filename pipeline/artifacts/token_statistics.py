"""The statistics with which a run has normalized token latents, as its checkpoints hold them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import CheckpointError

if TYPE_CHECKING:
    from ...diffusion.normalization import Normalization


def read_normalization(values: object, shape: tuple[int, int, int], path: Path) -> Normalization:
    """Return the normalization of a checkpoint's token latents.

    Args:
        values: the checkpoint's entry `latents`, `{"mean", "var", "eps"}`.
        shape: `(C, h, w)` of the latents.
        path: the checkpoint, for errors.

    Raises:
        CheckpointError: the statistics are missing, or those of other latents.
    """
    from ...diffusion.normalization import Normalization

    found = values if isinstance(values, Mapping) else {}
    mean: Any
    var: Any
    eps: Any
    mean, var, eps = (found.get(name) for name in ("mean", "var", "eps"))
    valid = _is_statistic(mean, shape) and _is_statistic(var, shape) and isinstance(eps, float) and 0 <= eps < 1
    if not valid or not bool((var >= 0).all()):
        raise CheckpointError(
            f"{path}: latents: expected finite tensors mean and var for latents {list(shape)}, which normalized "
            "the tokens"
        )
    return Normalization(mean=mean, var=var, eps=eps)


def _is_statistic(value: Any, shape: tuple[int, ...]) -> bool:
    import torch

    return (
        isinstance(value, torch.Tensor)
        and value.dtype == torch.float32
        and value.layout == torch.strided
        and not value.is_meta
        and value.ndim == len(shape)
        and all(size in (1, wanted) for size, wanted in zip(value.shape, shape, strict=True))
        and bool(value.isfinite().all())
    )
