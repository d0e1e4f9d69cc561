"""Devices, precisions, and errors of exhausted memory."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from ...errors import ConfigError, first_line
from .console import NOTICE
from .cpu import has_bf16
from .memory import keep_freed_memory

logger = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def choose_device(requested: str | None) -> torch.device:
    """Return the requested device, else cuda if available, else the CPU; ConfigError for an unavailable device.

    With `cuda`, every process of a machine gets its own GPU, according to LOCAL_RANK.
    """
    name = requested or ("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cpu":
        keep_freed_memory()
    try:
        device = torch.device(name)
        if name == "cuda":
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % max(1, torch.cuda.device_count()))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"--device is {name!r}, which this machine does not have: {first_line(error)}") from error
    return device


def peak_memory_gib(device: torch.device) -> float:
    """Return the most memory in GiB that tensors have used on a GPU or, for another device, this process in all."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # in KiB on Linux


def float64_device(device: torch.device) -> torch.device:
    """Return the device for float64 arithmetic: a CUDA device itself, else the CPU (other accelerators have none)."""
    return device if device.type == "cuda" else torch.device("cpu")


def choose_precision(device: torch.device) -> tuple[Literal["bf16", "fp32"], str]:
    """Return bf16 if the device computes in it, else fp32; and the reason, a clause."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        with torch.cuda.device(device):
            found = torch.cuda.is_bf16_supported(including_emulation=False)
        return ("bf16", f"{name} has bf16") if found else ("fp32", f"{name} has no bf16")
    if device.type == "cpu":
        found = has_bf16()
        return ("bf16" if found else "fp32", f"this CPU has {'' if found else 'no '}AVX512_BF16 or AMX")
    return "fp32", f"it is not known whether {device.type} has bf16"


def warn_if_emulated(precision: str, device: torch.device) -> None:
    """Log a warning if `precision` is bf16 and the device only emulates it."""
    own, reason = choose_precision(device)
    if precision == "bf16" and own == "fp32":
        logger.warning("%s: bf16 is emulated, which can be many times slower than fp32", reason, extra=NOTICE)


@contextmanager
def advice_when_out_of_memory(advice: str) -> Iterator[None]:
    """Turn out-of-memory errors of the device or of this machine into a ConfigError that ends with `advice`."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        plain = isinstance(error, RuntimeError) and not isinstance(error, torch.OutOfMemoryError)
        if plain and "can't allocate memory" not in str(error):
            raise
        raise ConfigError(f"out of memory ({first_line(error)}): {advice}") from error


def package_versions(*packages: str) -> dict[str, str]:
    """Return the installed versions of packages, for a fingerprint."""
    return {package: importlib.metadata.version(package) for package in packages}
