"""The CPU time that the control groups of this process allow, in CPUs: the limit of a container or of a batch job."""

from __future__ import annotations

from pathlib import Path

from ...control_groups import contents, folders_of


def cpu_quota() -> float | None:
    """Return the lowest quota of the process's control groups and of their parents; None for none."""
    quotas = [quota for folder in folders_of("cpu") for quota in (_version_2(folder), _version_1(folder))]
    return min((quota for quota in quotas if quota is not None), default=None)


def _version_2(folder: Path) -> float | None:
    quota, _, period = (contents(folder / "cpu.max") or "max 0").partition(" ")
    return None if quota == "max" else int(quota) / int(period)


def _version_1(folder: Path) -> float | None:
    quota, period = (contents(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
    return None if not quota or not period or int(quota) <= 0 else int(quota) / int(period)
