"""Progress with rate and remaining time, on stderr: a bar on a terminal, lines elsewhere, none with --quiet."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from .console import ROOT, logs_json
from .printable import one_line

logger = logging.getLogger(__name__)

LINE_EVERY_S = 10.0


class Progress(Protocol):
    """A counter that is shown with its rate."""

    def update(self, count: int = 1) -> None:
        """Add `count`."""

    def reach(self, done: int, total: int) -> None:
        """Set the count to `done`, and the total, which may have been unknown before, to `total`."""

    def note(self, text: str) -> None:
        """Show a few words after the numbers."""


class _Hidden:
    def __init__(self, description: str, total: int, unit: str, initial: int) -> None:
        pass

    def update(self, count: int = 1) -> None:
        pass

    def reach(self, done: int, total: int) -> None:
        pass

    def note(self, text: str) -> None:
        pass

    def close(self) -> None:
        pass


class _Bar:
    def __init__(self, description: str, total: int, unit: str, initial: int) -> None:
        from tqdm import tqdm

        self._bar = tqdm(
            desc=description,
            total=total,
            unit=unit,
            initial=initial,
            dynamic_ncols=True,
            smoothing=0.1,
            file=sys.stderr,
        )

    def update(self, count: int = 1) -> None:
        self._bar.update(count)

    def reach(self, done: int, total: int) -> None:
        self._bar.total = total
        self._bar.update(done - self._bar.n)

    def note(self, text: str) -> None:
        self._bar.set_postfix_str(one_line(text), refresh=False)

    def close(self) -> None:
        self._bar.close()


class _Lines:
    def __init__(self, description: str, total: int, unit: str, initial: int) -> None:
        self._description, self._total, self._unit = description, total, unit
        self._initial = self._count = initial
        self._start = self._printed = time.monotonic()
        self._note = ""

    def update(self, count: int = 1) -> None:
        self._count += count
        if time.monotonic() - self._printed >= LINE_EVERY_S:
            self._print()

    def reach(self, done: int, total: int) -> None:
        self._total = total
        self.update(done - self._count)

    def note(self, text: str) -> None:
        self._note = one_line(text)

    def close(self) -> None:
        self._print()

    def _print(self) -> None:
        self._printed = time.monotonic()
        elapsed = self._printed - self._start
        rate = (self._count - self._initial) / elapsed if elapsed else 0.0
        left = (self._total - self._count) / rate if rate else None
        shown = f"{rate_text(rate, self._unit)}, {time_text(left)} left" if left is not None else "no rate yet"
        text = f"{self._description}: {self._count:,} of {self._total:,} {self._unit}, {shown}"
        text += f", {self._note}" if self._note else ""
        if not logs_json():
            print(text, file=sys.stderr, flush=True)
            return
        values = {"done": self._count, "total": self._total, "unit": self._unit, "per_second": rate}
        logger.info(text, extra={"progress": values | {"seconds_left": left}})


def rate_text(per_second: float, unit: str) -> str:
    """Return a rate for people: `2,815 images/s`, `3.52 steps/s`, or `74.9 s per step` below one per second."""
    if per_second >= 1:
        return f"{per_second:,.0f} {unit}/s" if per_second >= 100 else f"{per_second:.3g} {unit}/s"
    return f"{time_text(1 / per_second)} per {unit.removesuffix('s')}"


def time_text(seconds: float) -> str:
    """Return a duration for people: `4.2 s`, `45 s`, `3 min 20 s`, `1 h 12 min`, `2 d 5 h`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for size, unit, part, smaller in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // part} {smaller}"
    return f"{whole} s"


@contextmanager
def progress(description: str, total: int, unit: str, initial: int = 0) -> Iterator[Progress]:
    """Show a counter of `total` units until the block ends."""
    kind: type[_Hidden | _Bar | _Lines] = _Bar if sys.stderr.isatty() and not logs_json() else _Lines
    if logging.getLogger(ROOT).level > logging.INFO:
        kind = _Hidden
    shown = kind(one_line(description), total, unit, initial)
    try:
        yield shown
    finally:
        shown.close()
