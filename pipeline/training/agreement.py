"""What all ranks do next, which they decide together before every step: take it, stop, or end because of an error.

A rank cannot leave alone. The others would wait for it in the collective calls of a step, and could no longer save what
they have, since weights may be sharded. So whatever keeps a rank from taking a step is told to the others first, while
all of them are between two steps: a batch that cannot be read, a signal, an error of the first rank's files.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from ...errors import RankError
from ..runtime.distributed import DistributedContext

logger = logging.getLogger(__name__)

NOTICE_S = 60.0  # after so long without a batch, a warning says what the run is waiting for

STEP, STOP, FAIL = 0, 1, 2  # the highest one of any rank counts

T = TypeVar("T")


class StopRequestedError(Exception):
    """Raised while waiting for a batch that is no longer needed."""


class Agreement:
    """The decisions of a training.

    Args:
        ranks: the ranks. All of them make the same calls in the same order.
        stop: returns whether this rank was asked to stop.

    Attributes:
        failed: whether the ranks have agreed to end because of an error; then all of them are outside of a step.
    """

    def __init__(self, ranks: DistributedContext, stop: Callable[[], bool]) -> None:
        self._ranks, self._stop = ranks, stop
        self._error: Exception | None = None
        self._waiting_since: float | None = None
        self.failed = False

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Keep an exception of the block until the next decision; for what ranks do on their own between steps."""
        try:
            yield
        except Exception as error:
            self._error = self._error or error

    def fetch(self, read: Callable[[], T]) -> T | None:
        """Return what `read` returns once it has on all ranks, or None on all of them if one was asked to stop.

        Raises:
            Exception: of `read` on this rank, or one that was deferred.
            RankError: another rank has failed.
        """
        value = None
        if self._error is None:
            try:
                value = read()
            except StopRequestedError:
                pass
            except Exception as error:
                if not self._stop():  # otherwise what could not be read is not needed
                    self._error = error
        self._waiting_since = None
        own = FAIL if self._error else STOP if value is None or self._stop() else STEP
        return value if self._decide(own) == STEP else None

    def settle(self) -> None:
        """Raise an exception that was deferred on any rank, on all of them, as `fetch` does."""
        self._decide(FAIL if self._error else STEP)

    def _decide(self, own: int) -> int:
        decision, rank = self._ranks.agree(own)
        if decision == FAIL:
            self.failed = True
            raise self._error or RankError(
                f"rank {rank} has failed: its message states why; re-run the same command to resume"
            )
        return decision

    def while_waiting(self) -> None:
        """Call this repeatedly while a batch is not ready: a stop ends the wait, and a long wait is reported once.

        Raises:
            StopRequestedError: this rank was asked to stop.
        """
        if self._stop():
            raise StopRequestedError
        now = time.monotonic()
        if self._waiting_since is None:
            self._waiting_since = now
        elif now - self._waiting_since > NOTICE_S:
            self._waiting_since = float("inf")
            logger.warning(
                "no batch for %g s: still waiting for the disk or the server of the store (a signal stops the run with "
                "a checkpoint)",
                NOTICE_S,
            )
