"""The control groups that this process belongs to (cgroups, versions 1 and 2): limits of a container or a batch job."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")


def folders_of(controller: str) -> Iterator[Path]:
    """Yield the folders of the groups that limit a resource (`cpu`, `memory`), and of their parents.

    A container may show the path of its group on the host, which does not exist inside; its own limit is then that of
    the topmost folder.
    """
    for line in (contents(OWN_CGROUPS) or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers or controller in controllers.split(","):
            group = PurePosixPath(path.lstrip("/"))
            for root in {CGROUPS, CGROUPS / controllers, CGROUPS / controller}:
                yield from (root / each for each in (group, *group.parents))


def contents(path: Path) -> str | None:
    """Return the contents of a file, stripped; None if it does not exist, as on another system or version."""
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return None
