"""The log of a training run: `metrics.parquet`, one row per `--log-steps` steps."""

from __future__ import annotations

import time
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ...errors import ConfigError
from ...stores.files import atomic_write_bytes
from .run_folder import RunFolder

WRITE_EVERY_S = 10.0


class MetricsLog:
    """The rows of a run. All of them (a few thousand) are kept in memory and written together, atomically."""

    def __init__(self, run: RunFolder, start_step: int) -> None:
        self._path = run.metrics_log
        self._written = time.monotonic()
        # rows after the checkpoint that the run resumes from will be logged again
        self._rows = [row for row in read_metrics(run) if row["step"] <= start_step]

    def add(self, row: dict[str, Any]) -> None:
        """Append a row; rows are written every few seconds."""
        self._rows.append(row)
        if time.monotonic() - self._written > WRITE_EVERY_S:
            self.write()

    def write(self) -> None:
        """Write all rows."""
        if not self._rows:
            return
        names = dict.fromkeys(name for row in self._rows for name in row)  # a row may have more than the one before
        types = pa.schema([(name, pa.int64() if name == "step" else pa.float64()) for name in names])
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(self._rows, types), sink)
        atomic_write_bytes(self._path, sink.getvalue().to_pybytes())
        self._written = time.monotonic()


def read_metrics(run: RunFolder) -> list[dict[str, Any]]:
    """Read the rows of a run, an empty list if there is no file yet; raise ConfigError when it is damaged."""
    if not run.metrics_log.exists():
        return []
    try:
        rows: list[dict[str, Any]] = pq.read_table(run.metrics_log).to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise ConfigError(
            f"{run.metrics_log} cannot be read as a run's log ({error}): restore it from a copy"
        ) from error
    return rows
