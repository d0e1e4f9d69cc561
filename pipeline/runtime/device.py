"""Where models run and in which precision."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ...errors import ConfigError, first_line
from .memory import keep_freed_memory

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def choose_device(asked: str | None) -> torch.device:
    """The device asked for, else cuda where there is one; ConfigError when it is not there."""
    name = asked or ("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cpu":
        keep_freed_memory()
    try:
        device = torch.device(name)
        if name == "cuda":  # each process of a machine takes a GPU of its own
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % max(1, torch.cuda.device_count()))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"--device is {name!r}, which this machine does not have: {first_line(error)}") from error
    return device


def float64_device(device: torch.device) -> torch.device:
    """The device for what must be float64: a CUDA device itself, else the CPU, as other accelerators have none."""
    return device if device.type == "cuda" else torch.device("cpu")


@contextmanager
def out_of_memory_names(flags: str) -> Iterator[None]:
    """Turn exhausted memory, the device's or this machine's, into a ConfigError that says what to change."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        plain = isinstance(error, RuntimeError) and not isinstance(error, torch.OutOfMemoryError)
        if plain and "can't allocate memory" not in str(error):
            raise
        raise ConfigError(f"out of memory ({first_line(error)}): {flags}") from error


def versions(*packages: str) -> dict[str, str]:
    """Installed versions, for a fingerprint."""
    return {package: importlib.metadata.version(package) for package in packages}
