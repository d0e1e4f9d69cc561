"""The ends of the logs of runs: the last rows of their metrics, and the last lines of a sweep's log file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..artifacts.run_folder import RunFolder
from .runs import Run
from .tables import Cell, Table, number_text

ROWS = 10
LINES = 30
MAX_BYTES = 64_000  # read from the end of a log file

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")  # colors and cursor movements


@dataclass(frozen=True, slots=True)
class LogEnd:
    """The last rows and lines of one run; None and "" where there are none."""

    run: int
    name: str
    rows: Table | None
    lines: str


def log_ends(runs: Sequence[Run]) -> list[LogEnd]:
    """Return the ends of the logs of every run that has one."""
    ends = [LogEnd(i, run.name, _last_rows(run), last_lines(RunFolder(run.folder).log)) for i, run in enumerate(runs)]
    return [end for end in ends if end.rows or end.lines]


def last_lines(path: Path) -> str:
    """Return the last lines of a log file as a terminal shows them, "" without a file."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - MAX_BYTES))
        text = file.read().decode(errors="replace")
    lines = [line.rstrip("\r").rpartition("\r")[2].rstrip() for line in _CONTROL.sub("", text).split("\n")]
    return "\n".join([line for line in lines if line][-LINES:])


def _last_rows(run: Run) -> Table | None:
    if not run.num_rows:
        return None
    columns = {name: values[-ROWS:][::-1] for name, values in run.columns.items()}
    header = tuple(Cell(name, numeric=name != "step") for name in columns)
    rows = tuple(
        tuple(Cell(_text(name, value), numeric=name != "step") for name, value in zip(columns, row, strict=True))
        for row in zip(*columns.values(), strict=True)
    )
    return Table(f"Last rows of the log of {run.name}, newest first", header, rows)


def _text(name: str, value: float) -> str:
    if name == "step":
        return f"{value:,.0f}"
    return number_text(value) if value == value else "–"  # noqa: PLR0124 - NaN: the row lacks the metric
