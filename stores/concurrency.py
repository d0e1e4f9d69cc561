"""How many requests to a server are in flight: found by trying, since latency and bandwidth differ a hundredfold."""

from __future__ import annotations

import threading

LEVELS = (32, 64, 128, 256)  # requests in flight
START = 1  # position in LEVELS of the first attempt
GAIN = 1.1  # factor by which a level must be faster than the one below, to be worth its memory and load
TRIALS = 3  # measurements of a level, of which the fastest counts: other programs only ever slow one down
SETTLED = 100  # measurements that are ignored before the search is repeated, from one level below


class Concurrency:
    """The number of requests in flight, which grows while the throughput grows. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._level, self._below = START, 0.0
        self._trials: list[float] = []
        self._settled = 0

    @property
    def limit(self) -> int:
        """Requests to keep in flight."""
        return LEVELS[self._level]

    def record(self, limit: int, bytes_per_s: float) -> None:
        """Record the throughput of requests that were made with `limit` of them in flight."""
        with self._lock:
            if limit != self.limit:  # another thread has changed it meanwhile
                return
            if self._settled:
                self._settled -= 1
                if not self._settled:
                    self._level, self._below, self._trials = max(0, self._level - 1), 0.0, []
                return
            self._trials.append(bytes_per_s)
            if len(self._trials) == TRIALS:
                self._choose(max(self._trials))

    def _choose(self, rate: float) -> None:
        """Try the next level if this one was worth it; else settle."""
        self._trials = []
        if rate < GAIN * self._below:
            self._level, self._settled = self._level - 1, SETTLED
        elif self._level + 1 == len(LEVELS):
            self._settled = SETTLED
        else:
            self._level, self._below = self._level + 1, rate
