"""Where models run and in which precision."""

from __future__ import annotations

import importlib.metadata

import torch

from ..errors import ConfigError

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def choose_device(asked: str | None) -> torch.device:
    """The device asked for, else cuda where there is one; ConfigError when it is not there."""
    if asked is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(asked)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"--device is {asked!r}, which this machine does not have: {_first_line(error)}") from error
    return device


def versions(*packages: str) -> dict[str, str]:
    """Installed versions, for a fingerprint."""
    return {package: importlib.metadata.version(package) for package in packages}


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0]
