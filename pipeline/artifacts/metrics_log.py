"""The log of a training run: `metrics.parquet`, one row per `--log-steps` steps."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ...errors import ConfigError
from ...parquet import Column, read_parquet
from ...stores.files import atomic_write_bytes
from ..runtime.lease import require_held
from .damaged import set_aside
from .run_folder import RunFolder

logger = logging.getLogger(__name__)

WRITE_EVERY_S = 10.0
EVALUATION = "eval_"  # prefix of the columns of metrics that a checkpoint was evaluated with, during training
_DIGEST = b"repa_pipe.sha256_of_rows"

_LOSS = Column(kind="numbers", nullable=True, required=False)
_MEASURED = Column(kind="numbers", required=False, at_least=0)
COLUMNS = {
    "step": Column(kind="integers", at_least=0, increasing=True),
    "loss": Column(kind="numbers", nullable=True),
    **dict.fromkeys(("denoising_loss", "alignment_loss", "val_denoising_loss"), _LOSS),
    **dict.fromkeys(("images_per_s", "data_wait", "seconds"), _MEASURED),
}
"""The columns of a log that other modules read; it may have more."""


class MetricsLog:
    """The rows of a run. All of them (a few thousand) are kept in memory and written together, atomically."""

    def __init__(self, run: RunFolder, start_step: int) -> None:
        self._run = run
        self._written = time.monotonic()
        # rows after the checkpoint that the run resumes from will be logged again
        self._rows = [row for row in _read_or_set_aside(run) if row["step"] <= start_step]

    def add(self, row: dict[str, Any]) -> None:
        """Append a row; rows are written every few seconds."""
        self._rows.append(row)
        if time.monotonic() - self._written > WRITE_EVERY_S:
            self.write()

    def has_evaluation(self, step: int) -> bool:
        """Return whether the row of a step has metrics of its checkpoint."""
        rows = (row for row in self._rows if row["step"] == step)
        return any(value is not None for row in rows for name, value in row.items() if name.startswith(EVALUATION))

    def amend(self, step: int, values: Mapping[str, float]) -> None:
        """Add columns to the row of a step, if there is one."""
        for row in self._rows:
            if row["step"] == step:
                row.update(values)

    def write(self, *, with_copy: bool = False) -> None:
        """Write all rows, with each checkpoint also to the copy."""
        if not self._rows:
            return
        names = dict.fromkeys(name for row in self._rows for name in row)  # a row may have more than the one before
        types = pa.schema([(name, _type_of(name, [row.get(name) for row in self._rows])) for name in names])
        table = pa.Table.from_pylist(self._rows, types)
        sink = pa.BufferOutputStream()
        pq.write_table(table.replace_schema_metadata({_DIGEST: _digest(table.to_pylist())}), sink)
        require_held()
        for path in (self._run.metrics_log, *[self._run.metrics_log_copy] * with_copy):
            atomic_write_bytes(path, sink.getvalue().to_pybytes())
        self._written = time.monotonic()


def _read_or_set_aside(run: RunFolder) -> list[dict[str, Any]]:
    """Read the rows of a run; a file that is no log is renamed, and the copy is used, if there is one."""
    try:
        return read_metrics(run)
    except ConfigError as error:
        rows = _read_copy(run)
        kept = f"its copy with the rows up to step {rows[-1]['step']:,} is used" if rows else "the log starts again"
        set_aside(run.metrics_log, error, kept)
        return rows


def _read_copy(run: RunFolder) -> list[dict[str, Any]]:
    try:
        return _read(run.metrics_log_copy)
    except ConfigError as error:
        logger.warning("%s", error)
        return []


def read_metrics(run: RunFolder) -> list[dict[str, Any]]:
    """Read the rows of a run, an empty list if there is no file yet.

    Raises:
        ConfigError: the file is damaged, or another program's: columns of `COLUMNS` are missing or hold something else.
    """
    return _read(run.metrics_log)


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    table = read_parquet(path, "a run's log", COLUMNS, remedy="restore it from a copy")
    rows: list[dict[str, Any]] = table.to_pylist()
    recorded = (table.schema.metadata or {}).get(_DIGEST)
    if recorded not in (None, _digest(rows)):  # None: an earlier version wrote it
        raise ConfigError(f"{path} cannot be read as a run's log (checksum mismatch): restore it from a copy")
    return rows


def _digest(rows: Sequence[Mapping[str, Any]]) -> bytes:
    return hashlib.sha256(json.dumps(rows, default=str).encode()).hexdigest().encode()


def _type_of(name: str, values: list[Any]) -> pa.DataType:
    """Return the type of a column: numbers, unless another version has logged something else."""
    if name == "step":
        return pa.int64()
    is_number = all(value is None or isinstance(value, int | float) for value in values)
    return pa.float64() if is_number else pa.infer_type(values)
