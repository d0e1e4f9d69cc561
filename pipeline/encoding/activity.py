"""Measures where the time of a worker goes: in the models, or waiting for images or for the disk.

Importing this module imports no torch.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import torch

MODELS, IMAGES, WRITING = "models", "images", "writing"
"""What a shard waits for: its batch in the models; its images, read and decoded; its arrays and commit, written."""


class ModelClock:
    """Seconds that a device spends on the work of a `with` block.

    On a GPU, measured by CUDA events around the kernels of the block, so that nothing waits for the device; a gap in
    which the device waits for the next kernel of the block is included. On other devices, the seconds in the block.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._on_gpu = device, device.type == "cuda"
        self._start: Any = None
        self._end: Any = None

    def __enter__(self) -> Self:
        self._start = self._now()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end = self._now()

    def _now(self) -> Any:
        if not self._on_gpu:
            return time.monotonic()
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def seconds(self) -> float:
        """Return the seconds of the block. On a GPU, waits until its work is done."""
        if not self._on_gpu:
            return float(self._end - self._start)
        self._end.synchronize()
        return float(self._start.elapsed_time(self._end)) / 1000


class Activity:
    """The time of a worker, divided among what the shards that it encodes at the same time wait for.

    While one of them waits for the models, the models work: this time belongs to `MODELS` alone. All other time is
    divided evenly among the shards. So the parts add up to the time in which a shard waited for anything.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: Counter[str] = Counter()
        self._since = time.monotonic()
        self._seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def waiting_for(self, what: str) -> Iterator[None]:
        """Count the time of the block as a shard's wait."""
        self._change(what, 1)
        try:
            yield
        finally:
            self._change(what, -1)

    def take(self) -> dict[str, float]:
        """Return the seconds of each part since the last call."""
        with self._lock:
            self._count()
            taken = dict(self._seconds)
            self._seconds.clear()
            return taken

    def _change(self, what: str, step: int) -> None:
        with self._lock:
            self._count()
            self._waiting[what] += step

    def _count(self) -> None:
        now = time.monotonic()
        waiting = {what: count for what, count in self._waiting.items() if count}
        waiting = {MODELS: 1} if MODELS in waiting else waiting
        for what, count in waiting.items():
            self._seconds[what] += (now - self._since) * count / sum(waiting.values())
        self._since = now
