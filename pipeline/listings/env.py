"""`repa-pipe env`: versions, hardware and paths as plain text, for bug reports."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from pathlib import Path

from ...errors import first_line
from ..runtime.cache import VARIABLE, cache_folder
from ..runtime.machine import (
    cpu_model,
    cuda_version,
    git_state,
    memory_gib,
    num_usable_cpus,
    relevant_cpu_flags,
    software_versions,
)

# Environment variables that change what the program does; they are listed if they are set.
VARIABLES = (
    "RAY_ADDRESS",
    "CUDA_VISIBLE_DEVICES",
    "OMP_NUM_THREADS",
    "MALLOC_ARENA_MAX",
    "ATEN_CPU_CAPABILITY",
    "ONEDNN_MAX_CPU_ISA",
    VARIABLE,
    "HF_HOME",
    "HF_HUB_OFFLINE",
    "TORCH_HOME",
)


def run() -> str:
    """Return one line per fact: its name, and its value."""
    facts = [*software_versions().items(), *_torch_facts(), *_machine_facts(), *_path_facts()]
    width = max(len(name) for name, _ in facts)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in facts)


def _torch_facts() -> Iterator[tuple[str, str]]:
    try:
        import torch
    except (ImportError, OSError) as error:  # a broken installation, which the report is then about
        yield "cuda", f"unknown: torch cannot be imported ({first_line(error)})"
        return
    yield "cuda", cuda_version() or "none (torch was built without CUDA)"
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        yield f"gpu {number}", f"{properties.name}, {properties.total_memory / 2**30:.1f} GiB"
    if not torch.cuda.is_available():
        yield "gpu", "none"


def _machine_facts() -> Iterator[tuple[str, str]]:
    yield "system", platform.platform()
    yield "cpu", f"{cpu_model()}, {num_usable_cpus()} usable"
    yield "cpu flags", " ".join(relevant_cpu_flags()) or "none of the relevant ones"
    total, available = memory_gib()
    yield "memory", f"{total:.1f} GiB, {available:.1f} GiB available"


def _path_facts() -> Iterator[tuple[str, str]]:
    package = Path(__file__).resolve().parents[1]
    state = git_state(package)
    commit = f" (commit {state.commit[:12]}{', changed' if state.dirty else ''})" if state else ""
    yield "package", f"{package}{commit}"
    yield "cache", str(cache_folder(""))
    yield from ((f"${name}", os.environ[name]) for name in VARIABLES if name in os.environ)
