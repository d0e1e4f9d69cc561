"""What a run shows and keeps of itself: metrics.parquet has one row every `log_steps` steps."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from ...config import TrainConfig
from ...stores.files import atomic_write_bytes
from ..runtime.progress import Progress
from ..training.trackers import open_tracker
from .images import Block

FILE = "metrics.parquet"
WRITE_EVERY_S = 10.0


class MetricsLog:
    """Rows of a run, kept in memory (a few thousand) and written whole, so the file is never half a file."""

    def __init__(self, run: Path, start_step: int) -> None:
        self._path = run / FILE
        self._written = time.monotonic()
        # rows after the checkpoint that the run goes on from will come again
        self._rows = [row for row in read_metrics(run) if row["step"] <= start_step]

    def add(self, row: dict[str, Any]) -> None:
        """Append a row; it is on disk within seconds."""
        self._rows.append(row)
        if time.monotonic() - self._written > WRITE_EVERY_S:
            self.write()

    def write(self) -> None:
        """Write all rows now."""
        if not self._rows:
            return
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(self._rows), sink)
        atomic_write_bytes(self._path, sink.getvalue().to_pybytes())
        self._written = time.monotonic()


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The rows of a run; none when it has not logged yet."""
    path = run / FILE
    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist() if path.exists() else []
    return rows


class TrainingMonitor:
    """Shows and logs what a run does, reading the device only every `log_steps` steps."""

    def __init__(self, config: TrainConfig, run_dir: Path, start_step: int, losses: tuple[str, ...]) -> None:
        self._config = config
        self._names = (*losses, "grad_norm")
        self._log = MetricsLog(run_dir, start_step)
        self._reporter = open_tracker(config, run_dir, start_step)
        self._sums: Tensor | None = None
        self._count, self._waited, self._since = 0, 0.0, time.perf_counter()

    def observe(self, step: int, values: Tensor, waited: float, bar: Progress) -> None:
        """Take note of a step."""
        self._sums = values if self._sums is None else self._sums + values
        self._count += 1
        self._waited += waited
        if step % self._config.log_steps == 0 or step == self._config.max_train_steps:
            self._row(step, bar)
        bar.update()

    def _row(self, step: int, bar: Progress) -> None:
        assert self._sums is not None
        means = dict(zip(self._names, (self._sums / self._count).tolist(), strict=True))
        seconds = time.perf_counter() - self._since
        row = means | {
            "images_per_s": self._count * self._config.batch_size / seconds,
            "data_wait": self._waited / seconds,
            "seconds": seconds,
        }
        self._log.add({"step": step, **row})
        self._reporter.scalars(step, row)
        memory = f", {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB" if torch.cuda.is_available() else ""
        bar.note(
            f"denoising {row['denoising_loss']:.4f}, alignment {row['alignment_loss']:.4f}, "
            f"{row['images_per_s']:.1f} images/s, data wait {row['data_wait']:.1%}{memory}"
        )
        self._sums, self._count, self._waited, self._since = None, 0, 0.0, time.perf_counter()

    def picture(self, step: int, image: Block) -> None:
        """Pass a picture of samples on."""
        self._reporter.picture(step, image)

    def write(self) -> None:
        """Write the rows to disk."""
        self._log.write()

    def close(self) -> None:
        """Write the rows to disk and end reporting."""
        self._log.write()
        self._reporter.close()
