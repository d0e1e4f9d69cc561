"""What the person who watches an encode run is told, and the limit of broken images."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from ...config import EncodeConfig
from ...errors import StoreError
from ...stores import Store
from ..runtime.progress import Progress
from .shard import ShardResult
from .work import wanted_groups

ALWAYS_ALLOWED_BAD = 10


@dataclass(slots=True)
class _Worker:
    """What one actor, or this process, has done since its first shard began."""

    start: float
    last: float
    images: int = 0
    busy: float = 0.0  # seconds

    @property
    def rate(self) -> float:
        return self.images / max(self.last - self.start, 1e-9)


class Monitor:
    """Counts what was encoded and what was broken; ends the job when too much is."""

    def __init__(self, config: EncodeConfig, store: Store, bar: Progress) -> None:
        self._bar, self._lock = bar, threading.Lock()
        self._allowed = max(ALWAYS_ALLOWED_BAD, int(config.max_bad * len(store)))
        self._config = config
        groups = [store.group(name) for name in wanted_groups(config) if name in store.group_names()]
        self._bad = {shard: len(commit.quarantined) for group in groups for shard, commit in group.commits.items()}
        self._workers: dict[str, _Worker] = {}
        self.encoded = 0

    def images(self, count: int) -> None:
        """Images that went through the models; 0 keeps the lines of a log coming."""
        with self._lock:
            self.encoded += count
            self._bar.update(count)

    def shard(self, result: ShardResult) -> None:
        """A shard that was committed; StoreError when more images are broken than allowed."""
        self._bad[result.shard] = result.quarantined
        now = time.monotonic()
        worker = self._workers.setdefault(result.worker, _Worker(now - result.seconds, now))
        worker.last = now
        worker.images += result.num_images
        worker.busy += result.busy
        self._bar.note(self._words())
        bad = sum(self._bad.values())
        if bad > self._allowed:
            raise StoreError(
                f"{bad} images are broken, --max-bad {self._config.max_bad:g} allows {self._allowed}: the records in "
                f"{self._config.store}/commits list them; mend the source, or raise --max-bad and start again"
            )

    @property
    def busy_share(self) -> float | None:
        """Share of the workers' time in which a batch was in the models; None before the first shard."""
        seconds = sum(worker.last - worker.start for worker in self._workers.values())
        return sum(worker.busy for worker in self._workers.values()) / seconds if seconds else None

    @property
    def rates(self) -> list[float]:
        """Images a second of every worker that has finished a shard, the slowest first."""
        return sorted(worker.rate for worker in self._workers.values())

    def _words(self) -> str:
        words = []
        rates, bad = self.rates, sum(self._bad.values())
        if len(rates) > 1:
            words.append(f"{len(rates)} actors at {rates[0]:.1f} to {rates[-1]:.1f} img/s")
        if self.busy_share is not None:
            words.append(f"models busy {100 * self.busy_share:.0f} %")
        if bad:
            words.append(f"{bad} broken")
        return ", ".join(words)
