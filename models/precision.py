"""Precision of frozen networks: float32, or half-precision autocast with float32 weights."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import ConfigError


def autocast_dtype(dtype: torch.dtype | None, network: str) -> torch.dtype | None:
    """Return the autocast dtype of a network, or None for plain float32 (`dtype` None or float32).

    Raises:
        ConfigError: the network cannot run in `dtype`.
    """
    if dtype in (None, torch.float32):
        return None
    if dtype not in (torch.float16, torch.bfloat16):
        raise ConfigError(f"{network} cannot run in {dtype}; expected float32, float16 or bfloat16")
    return dtype


def precision_name(dtype: torch.dtype | None) -> str:
    """Return "float32", "float16" or "bfloat16" for the result of `autocast_dtype`; recorded in fingerprints."""
    return "float32" if dtype is None else str(dtype).removeprefix("torch.")


def rows_not_finite(batch: Tensor) -> list[int]:
    """Return the rows of a batch that contain NaN or infinity."""
    rows: list[int] = (~batch.isfinite().flatten(1).all(1)).nonzero().flatten().tolist()
    return rows


def retry_in_float32(
    network: Callable[[Tensor], Tensor], batch: Tensor, dtype: torch.dtype | None
) -> tuple[Tensor, list[int]]:
    """Run a network in `dtype`, and run the rows whose outputs overflow again in float32.

    Rows are run again one by one, so that their outputs do not depend on which other rows overflow.

    Args:
        network: a function of a float32 batch.
        batch: its input, on the network's device.
        dtype: of autocast, or None for float32.

    Returns:
        The float32 outputs, and the rows that were run again. Outputs that are not finite in float32 either remain.
    """
    if dtype is None:
        return network(batch).float(), []
    with torch.autocast(batch.device.type, dtype):
        outputs = network(batch).float()
    rows = rows_not_finite(outputs)
    for row in rows:
        outputs[row] = network(batch[row : row + 1])[0]
    return outputs, rows
