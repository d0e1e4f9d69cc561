"""Facts about this machine, its software, and the user's code, for run records and bug reports.

Importing this module, and reading versions, does not import torch.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path

from .cpu import CPUINFO, cpu_flags
from .cpu_quota import cpu_quota

PACKAGES = ("repa-pipe", "torch", "torchvision", "ray", "zarr", "numpy", "pyarrow", "timm", "diffusers")
# Instruction sets that affect speed or rounding.
CPU_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8", "asimd", "sve")
GIT_TIMEOUT_S = 5.0


def software_versions() -> dict[str, str]:
    """Return the versions of Python and of the installed packages among `PACKAGES`."""
    found = {"repa-pipe": "", "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found.pop(package, None)
    return found


def version_text() -> str:
    """Return the versions of Python and of the most important packages in one line."""
    found = software_versions()
    return ", ".join(f"{name} {found[name]}" for name in ("python", "torch", "ray", "zarr") if name in found)


def cuda_version() -> str | None:
    """Return the version of CUDA that torch was built with; None for a build without CUDA. Imports torch."""
    import torch

    version: str | None = torch.version.cuda
    return version


def cpu_model() -> str:
    """Return the name of the CPU, else its architecture."""
    try:
        lines = CPUINFO.read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def relevant_cpu_flags() -> tuple[str, ...]:
    """Return those of `CPU_FLAGS` that the CPU has and torch may use."""
    flags = cpu_flags()
    return tuple(flag for flag in CPU_FLAGS if flag in flags)


def num_usable_cpus() -> int:
    """Return the number of CPUs that this process may use: its affinity, within the quota of its control groups."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota()
    return count if quota is None else min(count, max(1, int(quota)))


def memory_gib() -> tuple[float, float]:
    """Return the memory of this machine and how much of it is available, in GiB."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    kib = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
    return kib["MemTotal"] / 2**20, kib["MemAvailable"] / 2**20


def process_ticks(pid: int) -> int | None:
    """Return when a process of this machine was started, in ticks since boot; None if it does not run (Linux)."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return None
    return None if state == "Z" else int(fields[18])  # proc(5): starttime


def process_start(pid: int) -> float | None:
    """Return when a process of this machine was started, as a POSIX timestamp; None if it does not run (Linux)."""
    ticks = process_ticks(pid)
    if ticks is None:
        return None
    kernel = Path("/proc/stat").read_text(encoding="ascii").splitlines()
    booted = next(int(line.split()[1]) for line in kernel if line.startswith("btime"))
    return booted + ticks / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class GitState:
    """The state of a git repository."""

    commit: str
    dirty: bool | None  # whether tracked files were changed; None if this took too long to determine


def git_state(folder: Path) -> GitState | None:
    """Return the state of the repository that `folder` is in, or None: no repository, no commit, or no git."""
    commit = _git(folder, "rev-parse", "--verify", "HEAD")
    if not commit:
        return None
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return GitState(commit, None if changes is None else bool(changes))


def _git(folder: Path, *args: str) -> str | None:
    """Return the output of a git command; None if it fails or takes too long."""
    try:
        done = subprocess.run(
            ["git", *args],
            cwd=folder,
            env=os.environ | {"GIT_OPTIONAL_LOCKS": "0"},  # another git command may be running
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=GIT_TIMEOUT_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
