"""`repa-pipe runs`: the training runs in some folders, with state, speed and last metrics. Imports no torch."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from ...config import TrainConfig
from ...errors import ConfigError, RepaPipeError
from ..artifacts.metric_files import read_metrics_file
from ..artifacts.metrics_log import read_metrics
from ..artifacts.run_folder import RunFolder
from ..artifacts.run_record import RunRecord, read_run_record
from ..artifacts.sample_files import sample_sets
from ..runtime.tables import text_table

DEPTH = 3  # exps/SWEEP/RUN, and one more
LOSSES = {"denoising_loss": "denoising", "alignment_loss": "alignment", "val_denoising_loss": "val denoising"}
FID = "fid"
_UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"))


@dataclass(frozen=True, slots=True)
class Distance:
    """A Fréchet distance, and what it was computed from: values with other counts are not comparable."""

    value: float
    step: int
    num_images: int
    num_reference: int | None  # None when a statistics file does not record it


@dataclass(frozen=True, slots=True)
class RunRow:
    """One training run."""

    run: str
    state: str  # `Session.shown_state`
    step: int
    max_train_steps: int
    images_per_s: float | None  # None before the first row of the log
    seconds_left: float | None  # None unless the run is running
    losses: dict[str, float]  # the last value of each of LOSSES that was logged
    fid: float | None  # of the last evaluated checkpoint
    seconds_since_update: float
    host: str | None  # of the last session
    distances: dict[str, Distance]  # `fid`, and `fd_DETECTOR` of other detectors, of the last evaluated checkpoint


@dataclass(frozen=True, slots=True)
class RunsResult:
    """The runs, and the problems of those that cannot be read."""

    rows: list[RunRow]
    broken: list[str]

    @property
    def table(self) -> str:
        """The runs as text."""
        if not self.rows:
            return "no runs"
        names = sorted({name for row in self.rows for name in row.distances} - {FID})
        titles = [f"FD {name.removeprefix('fd_')}" for name in names]
        header = ("run", "state", "step", "of", "images/s", "left", *LOSSES.values(), "FID", *titles, "age")
        return text_table(header, [_cells(row, names) for row in self.rows])


# Orders of `--sort`; runs without a value are last.
SORTED: dict[str, Callable[[RunRow], float | None]] = {
    "age": lambda row: row.seconds_since_update,
    "step": lambda row: -row.step,
    "loss": lambda row: row.losses.get("denoising_loss"),
    "fid": lambda row: row.fid,
}


def run(folders: Sequence[str], sort: str | None = None) -> RunsResult:
    """Read all runs in folders, which may be run folders or contain some, a few levels deep.

    Args:
        folders: the folders.
        sort: one of `SORTED`; None keeps the order of the folders.

    Raises:
        ConfigError: a folder does not exist.
    """
    rows, broken = [], []
    for found in dict.fromkeys(found for folder in folders for found in _find_runs(Path(folder))):
        try:
            rows.append(_read_row(RunFolder(found)))
        except (RepaPipeError, OSError) as error:
            broken.append(f"{found} cannot be read: {error}")
    if sort is not None:
        rows.sort(key=lambda row: (SORTED[sort](row) is None, SORTED[sort](row)))
    return RunsResult(rows, broken)


def _find_runs(folder: Path) -> Iterator[Path]:
    if not folder.is_dir():
        raise ConfigError(f"there is no folder {folder}: expected run folders of 'repa-pipe train', or their parent")
    yield from _descend(folder, DEPTH)


def _descend(folder: Path, depth: int) -> Iterator[Path]:
    if RunFolder(folder).config_file.exists():
        yield folder
    elif depth:
        for child in sorted(folder.iterdir()):
            if child.is_dir() and not child.name.startswith("."):
                yield from _descend(child, depth - 1)


def _read_row(run_folder: RunFolder) -> RunRow:
    config, record, log = run_folder.read_config(), read_run_record(run_folder), read_metrics(run_folder)
    saved = [int(path.stem) for path in run_folder.checkpoints()]
    step = max([*saved, *(row["step"] for row in log[-1:])], default=0)
    state = _state(record, config, step)
    rate = log[-1].get("images_per_s") if log else None
    distances = _last_distances(run_folder)
    left = (config.max_train_steps - step) * config.batch_size / rate if rate and state == "running" else None
    return RunRow(
        run=str(run_folder.path),
        state=state,
        step=step,
        max_train_steps=config.max_train_steps,
        images_per_s=rate,
        seconds_left=left,
        losses=_last_values(log),
        fid=distances[FID].value if FID in distances else None,
        seconds_since_update=max(0.0, time.time() - _updated(run_folder, record)),
        host=record.sessions[-1].host if record and record.sessions else None,
        distances=distances,
    )


def _state(record: RunRecord | None, config: TrainConfig, step: int) -> str:
    if record and record.sessions:
        return record.sessions[-1].shown_state()
    return "finished" if step >= config.max_train_steps else "unknown"  # of a version that recorded no sessions


def _last_values(log: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return the last value of each of LOSSES; validation losses are not in every row."""
    found: dict[str, float] = {}
    for name in LOSSES:
        value = next((row[name] for row in reversed(log) if row.get(name) is not None), None)
        if value is not None:
            found[name] = value
    return found


def _last_distances(run_folder: RunFolder) -> dict[str, Distance]:
    """Return the FID and the distances of other detectors; of several sets of images, those of the largest.

    Each is of the last checkpoint that it was computed for, and of the last evaluation.
    """
    found: dict[str, Distance] = {}
    for files in sample_sets(run_folder):
        records = [read_metrics_file(path) for path in files.all_metrics()]
        if not records:
            continue
        sampled = files.read_record()
        for record in records:
            for name, value in record.metrics.items():
                best = found.get(name)
                is_later = best is None or (best.step, best.num_images) <= (sampled.step, sampled.num_images)
                if is_later and (name == FID or name.startswith("fd_")):
                    found[name] = Distance(value, sampled.step, sampled.num_images, record.num_reference_of(name))
    return found


def _updated(run_folder: RunFolder, record: RunRecord | None) -> float:
    """Return when the training last wrote to the run folder, as a POSIX timestamp."""
    if record and record.sessions:
        return datetime.fromisoformat(record.sessions[-1].updated).timestamp()
    written = (run_folder.config_file, run_folder.metrics_log, *run_folder.checkpoints()[-1:])
    return max(path.stat().st_mtime for path in written if path.exists())


def _cells(row: RunRow, distances: Sequence[str]) -> list[str]:
    elsewhere = row.state in {"running", "unknown"} and row.host not in {None, socket.gethostname()}
    return [
        row.run,
        f"{row.state} on {row.host}" if elsewhere else row.state,
        f"{row.step:,}",
        f"{row.max_train_steps:,}",
        "-" if row.images_per_s is None else f"{row.images_per_s:,.1f}",
        "-" if row.seconds_left is None else duration_text(row.seconds_left),
        *(f"{row.losses[name]:.4f}" if name in row.losses else "-" for name in LOSSES),
        *(f"{row.distances[name].value:.2f}" if name in row.distances else "-" for name in (FID, *distances)),
        duration_text(row.seconds_since_update),
    ]


def duration_text(seconds: float) -> str:
    """Return a duration in its largest unit: `45 s`, `12.5 min`, `3.1 h`, `2.0 d`."""
    for size, unit in _UNITS:
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
