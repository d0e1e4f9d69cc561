"""The interface of experiment trackers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ...artifacts.images import Block

PROJECT = "repa-pipe"


class Tracker(Protocol):
    """Receives the scalars and images of a run."""

    def log_scalars(self, step: int, values: dict[str, float]) -> None:
        """Log scalars of a step."""

    def log_image(self, step: int, image: Block) -> None:
        """Log an image, uint8 `[H, W, 3]`."""

    def close(self) -> None:
        """Flush and close."""


class Trackers:
    """Several trackers, or none, as one."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._trackers = trackers

    def log_scalars(self, step: int, values: dict[str, float]) -> None:
        """Log scalars of a step."""
        for tracker in self._trackers:
            tracker.log_scalars(step, values)

    def log_image(self, step: int, image: Block) -> None:
        """Log an image, uint8 `[H, W, 3]`."""
        for tracker in self._trackers:
            tracker.log_image(step, image)

    def close(self) -> None:
        """Flush and close."""
        for tracker in self._trackers:
            tracker.close()
