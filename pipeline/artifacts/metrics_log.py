"""The log of a training run: `metrics.parquet`, one row per `--log-steps` steps."""

from __future__ import annotations

import logging
import time
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ...errors import ConfigError, first_line
from ...stores.files import atomic_write_bytes
from .run_folder import RunFolder

logger = logging.getLogger(__name__)

WRITE_EVERY_S = 10.0


class MetricsLog:
    """The rows of a run. All of them (a few thousand) are kept in memory and written together, atomically."""

    def __init__(self, run: RunFolder, start_step: int) -> None:
        self._path = run.metrics_log
        self._written = time.monotonic()
        # rows after the checkpoint that the run resumes from will be logged again
        self._rows = [row for row in _read_or_set_aside(run) if row["step"] <= start_step]

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
        types = pa.schema([(name, _type_of(name, [row.get(name) for row in self._rows])) for name in names])
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(self._rows, types), sink)
        atomic_write_bytes(self._path, sink.getvalue().to_pybytes())
        self._written = time.monotonic()


def _read_or_set_aside(run: RunFolder) -> list[dict[str, Any]]:
    """Read the rows of a run; a file that is no log is renamed, since writing the log would replace it."""
    try:
        return read_metrics(run)
    except ConfigError as error:
        aside = run.damaged_metrics_log()
        run.metrics_log.replace(aside)
        logger.warning("%s; moved to %s, the log starts again", error, aside)
        return []


def read_metrics(run: RunFolder) -> list[dict[str, Any]]:
    """Read the rows of a run, an empty list if there is no file yet.

    Raises:
        ConfigError: the file is damaged, or another program's: a log has integers `step` and numbers `loss`.
    """
    if not run.metrics_log.exists():
        return []
    try:
        table = pq.read_table(run.metrics_log)
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(
            f"{run.metrics_log} cannot be read as a run's log ({first_line(error)}): restore it from a copy"
        ) from error
    if not _is_log(table):
        raise ConfigError(
            f"{run.metrics_log} is not a run's log: expected integers step and numbers loss, found "
            f"{', '.join(f'{field.name} ({field.type})' for field in table.schema) or 'no columns'}"
        )
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def _is_log(table: pa.Table) -> bool:
    if not {"step", "loss"} <= set(table.column_names) or table.column("step").null_count:
        return False
    step, loss = (table.schema.field(name).type for name in ("step", "loss"))
    return bool(pa.types.is_integer(step) and pa.types.is_floating(loss))


def _type_of(name: str, values: list[Any]) -> pa.DataType:
    """Return the type of a column: numbers, unless another version has logged something else."""
    if name == "step":
        return pa.int64()
    is_number = all(value is None or isinstance(value, int | float) for value in values)
    return pa.float64() if is_number else pa.infer_type(values)
