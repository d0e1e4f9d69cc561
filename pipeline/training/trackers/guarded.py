"""A tracker never ends a run: one that raises is switched off with a warning."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ....errors import first_line
from ...artifacts.images import Block
from .tracker import Tracker, Trackers

logger = logging.getLogger(__name__)


class Guarded:
    """A tracker that is replaced by none when it raises, with one warning.

    Args:
        name: of the library, for the warning.
        remedy: ends the warning.
        start: starts the tracker.
    """

    def __init__(self, name: str, remedy: str, start: Callable[[], Tracker]) -> None:
        self._name, self._remedy = name, remedy
        self._tracker: Tracker = Trackers(())
        with self._switched_off_by_error():
            self._tracker = start()

    @contextmanager
    def _switched_off_by_error(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._tracker = Trackers(())
            logger.warning(
                "%s is switched off (%s): the run continues, and metrics.parquet has all rows%s",
                self._name,
                first_line(error),
                self._remedy,
            )

    def log_scalars(self, step: int, values: dict[str, float]) -> None:
        """Log scalars of a step."""
        with self._switched_off_by_error():
            self._tracker.log_scalars(step, values)

    def log_image(self, step: int, image: Block) -> None:
        """Log an image, uint8 `[H, W, 3]`."""
        with self._switched_off_by_error():
            self._tracker.log_image(step, image)

    def close(self) -> None:
        """Flush and close."""
        with self._switched_off_by_error():
            self._tracker.close()
