"""Where commands keep what they would otherwise compute or download again."""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "REPA_PIPE_CACHE"


def cache_folder(kind: str) -> Path:
    """`<cache>/<kind>`, not made yet: below $REPA_PIPE_CACHE, else $XDG_CACHE_HOME or ~/.cache, in `repa-pipe`."""
    own = os.environ.get(VARIABLE)
    if own:
        return Path(own) / kind
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "repa-pipe" / kind
