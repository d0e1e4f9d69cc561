"""The user's cache folder: downloads, and results that are expensive to compute again."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

VARIABLE = "REPA_PIPE_CACHE"


def cache_folder(kind: str) -> Path:
    """Return `<cache>/<kind>`, which may not exist yet.

    <cache> is $REPA_PIPE_CACHE, else `repa-pipe` in $XDG_CACHE_HOME or ~/.cache.
    """
    own = os.environ.get(VARIABLE)
    if own:
        return Path(own) / kind
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "repa-pipe" / kind


def cache_file(kind: str, key: dict[str, Any], suffix: str) -> Path:
    """Return `<cache>/<kind>/<digest of key><suffix>`, which may not exist yet; `key` holds JSON values."""
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
    return cache_folder(kind) / f"{digest}{suffix}"
