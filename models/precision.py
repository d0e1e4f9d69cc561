"""Precision of frozen networks: float32, or half-precision autocast with float32 weights."""

import torch

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
