"""Progress of an encode run: rates, utilization of the models, and the limit on broken images."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ...config import EncodeConfig
from ...errors import StoreError
from ...stores import Store
from ..runtime.progress import Progress
from .activity import IMAGES, WRITING

if TYPE_CHECKING:
    from .work import ShardResult

logger = logging.getLogger(__name__)

NAMED = 5  # images in a message; the commit record lists all of them
ALWAYS_TOLERATED = 10  # broken images, even in a small store


@dataclass(slots=True)
class _Worker:
    """Work of one actor, or of this process, since the start of its first shard."""

    start: float
    last: float
    images: int = 0
    busy: Counter[str] = field(default_factory=Counter)  # group → seconds
    activity: Counter[str] = field(default_factory=Counter)  # part → seconds

    @property
    def rate(self) -> float:
        return self.images / max(self.last - self.start, 1e-9)


class EncodeMonitor:
    """Counter of encoded and broken images that ends the run when too many are broken."""

    def __init__(self, config: EncodeConfig, store: Store, wanted: Sequence[str], bar: Progress) -> None:
        self._bar, self._lock = bar, threading.Lock()
        self._tolerated = max(ALWAYS_TOLERATED, int(config.max_bad * len(store)))
        self._config = config
        groups = [store.group(name) for name in wanted if name in store.group_names()]
        self._bad = {shard: len(commit.quarantined) for group in groups for shard, commit in group.commits.items()}
        self._workers: dict[str, _Worker] = {}
        self._processed, self._broken = 0, 0  # images of this run

    def on_images(self, count: int) -> None:
        """Count images that have passed through the models; 0 refreshes the display."""
        with self._lock:
            self._processed += count
            self._bar.update(count)

    def on_shard(self, result: ShardResult) -> None:
        """Count a committed shard; StoreError when more images are broken than tolerated."""
        self._bad[result.shard] = result.quarantined
        self._broken += result.quarantined
        now = time.monotonic()
        worker = self._workers.setdefault(result.worker, _Worker(now - result.seconds, now))
        worker.last = now
        worker.images += result.num_images
        worker.busy.update(result.busy)
        worker.activity.update(result.activity)
        self._bar.note(self._note())
        if result.in_float32:
            named = ", ".join(result.in_float32[:NAMED])
            more = len(result.in_float32) - NAMED
            logger.warning(
                "shard %d: encoded in float32 after an overflow in half precision: %s%s",
                result.shard,
                named,
                f" and {more} more" if more > 0 else "",
            )
        bad = sum(self._bad.values())
        if bad > self._tolerated:
            raise StoreError(
                f"{bad} images are broken, --max-bad {self._config.max_bad:g} tolerates {self._tolerated}: the commit "
                f"records in {self._config.store}/commits list them; fix the images, or raise --max-bad, and re-run"
            )

    @property
    def encoded(self) -> int:
        """Images that this run has encoded, without broken ones."""
        return self._processed - self._broken

    @property
    def busy_fractions(self) -> dict[str, float]:
        """Fraction of the workers' time for which their device computed each group; empty before the first commit."""
        return self._fractions([worker.busy for worker in self._workers.values()])

    @property
    def waiting_fractions(self) -> dict[str, float]:
        """Fractions of the workers' time in which no batch was in the models, by what was waited for."""
        fractions = self._fractions([worker.activity for worker in self._workers.values()])
        return {what: fractions.get(what, 0.0) for what in (IMAGES, WRITING)} if fractions else {}

    def _fractions(self, parts: list[Counter[str]]) -> dict[str, float]:
        seconds = sum(worker.last - worker.start for worker in self._workers.values())
        names = sorted({name for part in parts for name in part})
        return {name: sum(part[name] for part in parts) / seconds for name in names} if seconds else {}

    @property
    def busy_fraction(self) -> float | None:
        """Fraction of the workers' time for which their device was in the models; None before the first commit."""
        return sum(self.busy_fractions.values()) if self.busy_fractions else None

    def utilization(self) -> str:
        """Return in one line how busy the models were, and what they waited for; empty before the first commit."""
        if self.busy_fraction is None:
            return ""
        groups = ", ".join(f"{group} {_percent(part)}" for group, part in self.busy_fractions.items())
        waits = self.waiting_fractions
        return (
            f"models busy {_percent(self.busy_fraction)} of the time ({groups}); "
            f"waiting for images {_percent(waits[IMAGES])}, for writing {_percent(waits[WRITING])}"
        )

    @property
    def rates(self) -> list[float]:
        """Images per second of every worker that has committed a shard, in ascending order."""
        return sorted(worker.rate for worker in self._workers.values())

    def _note(self) -> str:
        parts = []
        rates, bad = self.rates, sum(self._bad.values())
        if len(rates) > 1:
            parts.append(f"{len(rates)} actors at {rates[0]:.1f} to {rates[-1]:.1f} images/s")
        if self.busy_fraction is not None:
            parts.append(f"models busy {_percent(self.busy_fraction)}")
        if bad:
            parts.append(f"{bad} broken")
        return ", ".join(parts)


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.0f} %"
