"""Files that cannot be read: kept under another name, and replaced by the ones before, or by computing them again.

Only commands that write a folder do this, while they hold its lease; commands that only read report the error.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from ...errors import RepaPipeError

logger = logging.getLogger(__name__)

T = TypeVar("T")


def set_aside(path: Path, problem: object, consequence: str) -> Path:
    """Rename a damaged file or folder to `NAME.damaged-1`, or the next number, and log a warning. Return its new path.

    Args:
        path: the file or folder.
        problem: the error of reading it, which names the file.
        consequence: what is lost, and what is used instead.
    """
    names = (path.with_name(f"{path.name}.damaged-{number}") for number in itertools.count(1))
    aside = next(name for name in names if not name.exists())
    path.rename(aside)
    logger.warning("%s; moved to %s, %s", problem, aside, consequence)
    return aside


def read_or_set_aside(path: Path, read: Callable[[], T], consequence: str) -> T | None:
    """Return what `read` reads from a file; None if there is no file, or if it was damaged and is now set aside."""
    if not path.exists():
        return None
    try:
        return read()
    except RepaPipeError as error:
        set_aside(path, error, consequence)
        return None
