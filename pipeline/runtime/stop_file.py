"""A file that asks processes of other machines to stop, where signals do not reach them."""

from __future__ import annotations

import os
import time
from pathlib import Path

LOOK_EVERY_S = 1.0


class StopFile:
    """A file in a folder that all of the processes share; it is not there until a stop is requested."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._looked, self._found = -LOOK_EVERY_S, False

    def create(self) -> None:
        """Request the stop."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.touch()

    def exists(self) -> bool:
        """Return whether a stop is requested. Looks at most once per second.

        The folder is listed, since NFS remembers for up to a minute that a file did not exist.
        """
        now = time.monotonic()
        if not self._found and now - self._looked >= LOOK_EVERY_S:
            self._looked = now
            folder = self._path.parent
            self._found = folder.is_dir() and self._path.name in os.listdir(folder)
        return self._found
