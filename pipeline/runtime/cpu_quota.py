"""The CPU time that the control groups of this process allow, in CPUs: the limit of a container or of a batch job."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")


def cpu_quota() -> float | None:
    """Return the lowest quota of the process's control groups and of their parents (versions 1 and 2); None for none.

    A container may show the path of its group on the host, which does not exist inside; its own limit is then that of
    the topmost folder.
    """
    found = [quota for folder in _folders() for quota in (_version_2(folder), _version_1(folder)) if quota is not None]
    return min(found, default=None)


def _folders() -> Iterator[Path]:
    """Yield the folders of the groups that limit CPU time, and their parents."""
    for line in (_read(OWN_CGROUPS) or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers or "cpu" in controllers.split(","):
            group = PurePosixPath(path.lstrip("/"))
            for root in {CGROUPS, CGROUPS / controllers, CGROUPS / "cpu"}:
                yield from (root / each for each in (group, *group.parents))


def _version_2(folder: Path) -> float | None:
    quota, _, period = (_read(folder / "cpu.max") or "max 0").partition(" ")
    return None if quota == "max" else int(quota) / int(period)


def _version_1(folder: Path) -> float | None:
    quota, period = (_read(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
    return None if not quota or not period or int(quota) <= 0 else int(quota) / int(period)


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:  # not Linux, or another version
        return None
