"""The number of files that this process may have open."""

from __future__ import annotations

import resource
from contextlib import suppress

ENOUGH = 65_536  # some hard limits are a billion, and some programs count up to the limit


def raise_descriptor_limit() -> None:
    """Raise the soft limit of open files to the hard one: a store of ImageNet has more shards than the usual 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = ENOUGH if hard == resource.RLIM_INFINITY else min(hard, ENOUGH)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    with suppress(ValueError, OSError):  # the system may forbid it; the limit stays as it is
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
