"""Batches read ahead by threads, in the order of their steps.

Two batches are read at the same time: while the last samples of one arrive, the disk already works on the next.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Sequence
from itertools import cycle
from typing import Any

from ..errors import StoreError
from .batch import Batch

AT_ONCE = 2  # batches
POLL_S = 0.2
END_LIMIT_S = 2.0  # for the last reads of the threads


def read_ahead(
    plan: Callable[[int], tuple[Any, ...]],
    read: Callable[..., Batch],
    steps: Sequence[int],
    ahead: int,
    waiting: Callable[[], None] | None = None,
) -> Generator[Batch, None, None]:
    """Yield `read(*plan(step))` for every step.

    Args:
        plan: what to read in a step. Called by one thread at a time.
        read: reads a batch. Called by several threads at a time.
        steps: a range of steps.
        ahead: number of batches that are kept ready, besides those that are being read; at least 1.
        waiting: called every POLL_S while the next batch is not ready. What it raises ends the generator.

    Raises:
        StoreError: a batch cannot be read.
    """
    stop, planning = threading.Event(), threading.Lock()

    def read_step(step: int) -> Batch:
        with planning:
            planned = plan(step)
        return read(*planned)

    readers = min(AT_ONCE, ahead)
    threads = [_Reader(read_step, steps[k::readers], ahead // readers, stop) for k in range(readers)]
    try:
        for _, thread in zip(steps, cycle(threads), strict=False):
            item = thread.take(waiting)
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        for thread in threads:
            thread.join(END_LIMIT_S)  # a read that hangs must not keep the caller


class _Reader(threading.Thread):
    """Reads the batches of some steps, and keeps a few ready."""

    def __init__(self, read: Callable[[int], Batch], steps: Sequence[int], ahead: int, stop: threading.Event) -> None:
        super().__init__(name="read-ahead", daemon=True)
        self._read, self._steps, self._stop_asked = read, steps, stop
        self._ready: queue.Queue[Batch | BaseException] = queue.Queue(maxsize=ahead)
        self.start()

    def run(self) -> None:
        try:
            for step in self._steps:
                if self._stop_asked.is_set():
                    return
                self._put(self._read(step))
        except BaseException as error:
            self._put(error)

    def _put(self, item: Batch | BaseException) -> None:
        while not self._stop_asked.is_set():
            try:
                self._ready.put(item, timeout=0.1)
                return
            except queue.Full:
                continue

    def take(self, waiting: Callable[[], None] | None) -> Batch | BaseException:
        """Return the next batch, or why it cannot be read."""
        while True:
            alive = self.is_alive()  # before the queue is looked at: the thread ends after its last item
            try:
                return self._ready.get(timeout=POLL_S)
            except queue.Empty:
                if not alive:  # in a fork of the process, which has no other threads
                    raise StoreError(
                        "the thread that reads the store has ended: create the dataset in this process"
                    ) from None
            if waiting is not None:
                waiting()
