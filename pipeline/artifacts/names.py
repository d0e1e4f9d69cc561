"""Names of output files: they come from content, and a name that other content has is not taken again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def digest_of(settings: Mapping[str, Any]) -> str:
    """Return eight hexadecimal digits that stand for settings, which are JSON values."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


def with_ending(path: Path, old: str, new: str) -> Path:
    """Replace the ending of a file's name; unlike `Path.with_suffix`, this keeps what follows any other dot in it."""
    return path.with_name(path.name.removesuffix(old) + new)
