"""Curves of a report: every metric in the logs of the runs, thinned, and the same as a table.

`assets/curves.js` draws them in the browser, with bokeh's script and the data that `plot_data` embeds in the page.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..artifacts.metrics_log import EVALUATION
from ..runtime.printable import one_line
from .plots import line_style
from .runs import Column, Run
from .tables import Cell, Table, count_text, number_text

MAX_POINTS = 500
MAX_VALUES = 100_000  # of all curves together, which keeps a report of twenty runs small enough to send by email
FEW_POINTS = 30  # a curve of so few points has a marker at each, is not smoothed and not cut off
DESCRIBED_RUNS = 4

_TITLES = {
    "denoising_loss": "Denoising loss",
    "alignment_loss": "Alignment loss",
    "cls_loss": "Class token loss",
    "loss": "Total loss",
    "grad_norm": "Gradient norm",
    "learning_rate": "Learning rate",
    "images_per_s": "Images per second",
    "data_wait": "Data wait (fraction)",
    "mfu": "Model FLOPs utilization (MFU)",
    "memory_gib": "Peak memory (GiB)",
    "gpu_utilization": "GPU utilization (fraction)",
    "gpu_memory_gib": "GPU memory of all processes (GiB)",
    "gpu_celsius": "GPU temperature (°C)",
    "cpu_cores": "Busy CPU cores",
    "process_gib": "Memory of the process (GiB)",
    "disk_read_mib_per_s": "Reads from disks (MiB/s)",
}
_VALIDATION = "val_"
_X_COLUMNS = {"step", "seconds"}

Points = tuple[Column, Column, Column]  # steps, hours, values


@dataclass(frozen=True, slots=True)
class Series:
    """One curve of a run: its values, and the coordinates for each x axis of the figure."""

    run: int
    x: tuple[Column, ...]
    y: Column


@dataclass(frozen=True, slots=True)
class Figure:
    """The curves of one metric. With several x axes, the reader selects one."""

    title: str
    x_labels: tuple[str, ...]
    series: tuple[Series, ...]
    description: str  # text alternative
    smoothed: bool = False  # whether curves of more than FEW_POINTS are


def thin(values: Column, points: int = MAX_POINTS) -> Column:
    """Return the means of buckets of consecutive values, at most `points`; the last bucket may be smaller."""
    size = -(-len(values) // points)
    starts = np.arange(0, len(values), max(1, size))
    counts = np.diff([*starts, len(values)])
    means: Column = np.add.reduceat(values, starts) / counts if len(values) else values
    return means


def bucket_ends(values: Column, points: int = MAX_POINTS) -> Column:
    """Return the last value of each bucket of `thin`."""
    size = max(1, -(-len(values) // points))
    return (
        values[np.minimum(np.arange(size - 1, len(values) + size - 1, size), len(values) - 1)]
        if len(values)
        else values
    )


def metric_names(runs: Sequence[Run]) -> list[str]:
    """Return the metrics that at least one run has logged: known ones first, validation next to training."""
    names = {name for run in runs for name in run.columns if name not in _X_COLUMNS and _has_points(run, name)}
    known = list(_TITLES)

    def rank(name: str) -> tuple[int, str, bool]:
        plain = name.removeprefix(_VALIDATION)
        return (known.index(plain) if plain in known else len(known), plain, plain != name)

    return sorted(names, key=rank)


def metric_label(name: str) -> str:
    """Return the display name of a column of the log: `Validation: denoising loss`."""
    plain = name.removeprefix(_VALIDATION)
    if name.startswith(EVALUATION):
        return f"Evaluation during training: {name.removeprefix(EVALUATION).replace('_', ' ')}"
    title = _TITLES.get(plain, plain.replace("_", " ").capitalize())
    return title if plain == name else f"Validation: {title[0].lower()}{title[1:]}"


def metric_points(run: Run, name: str) -> Points:
    """Return steps, hours of training and values of the rows that have a finite value of the metric."""
    values = run.columns.get(name, np.full(run.num_rows, np.nan))
    rows = np.isfinite(values) & (run.is_aligned or "alignment" not in name)
    hours = np.cumsum(run.columns["seconds"]) / 3600
    return run.columns["step"][rows], hours[rows], values[rows]


def draw_curves(runs: Sequence[Run]) -> list[Figure]:
    """Return one figure per metric, with a curve of every run that has logged it."""
    names = metric_names(runs)
    points = max(2 * FEW_POINTS, min(MAX_POINTS, MAX_VALUES // max(1, len(names) * len(runs))))
    figures = []
    for name in names:
        found = [(i, metric_points(run, name)) for i, run in enumerate(runs) if _has_points(run, name)]
        series = tuple(
            Series(i, (bucket_ends(steps, points), bucket_ends(hours, points)), thin(values, points))
            for i, (steps, hours, values) in found
        )
        title = metric_label(name)
        described = _description(title, [(runs[i].name, steps, values) for i, (steps, _, values) in found])
        figures.append(Figure(title, ("step", "hours of training"), series, described, smoothed=True))
    return figures


def curves_note(runs: Sequence[Run], figures: Sequence[Figure]) -> str:
    """Describe how the logged values are drawn."""
    points = max((len(one.y) for figure in figures for one in figure.series), default=0)
    if points > FEW_POINTS:
        note = "Faint lines are the logged values, strong lines their exponential moving averages with bias correction."
    else:
        note = "Lines are the logged values, which are too few to smooth."
    if any(run.num_rows > points for run in runs):
        note += f" Curves are thinned to at most {points} points, each the mean of consecutive log rows."
    return note


def metrics_over_steps(runs: Sequence[Run], count: int = 8) -> Table:
    """Return every metric of every run at the log rows nearest to `count` evenly spaced steps."""
    steps = np.unique(np.linspace(0, max(run.step for run in runs), count + 1).round()[1:].astype(int))
    header = (Cell("Run"), Cell("Metric"), *(Cell(f"step {step:,}", numeric=True) for step in steps))
    rows = []
    for i, run in enumerate(runs):
        for name in metric_names([run]):
            logged, _, values = metric_points(run, name)
            nearest = [values[np.abs(logged - step).argmin()] if run.step >= step else None for step in steps]
            cells = (Cell("–" if value is None else number_text(value), numeric=True) for value in nearest)
            rows.append((Cell(run.name, run=i), Cell(metric_label(name)), *cells))
    return Table("Metrics, from the log row nearest to each step", header, tuple(rows))


def plot_data(runs: Sequence[Run], figures: Sequence[Figure]) -> str:
    """Return the figures as JSON that is safe inside of a `<script>` element; equal arrays are embedded once."""
    arrays: dict[bytes, int] = {}
    texts: list[list[float]] = []

    def position(array: Column) -> int:
        key = array.tobytes()
        if key not in arrays:
            arrays[key] = len(texts)
            texts.append([_rounded(value) for value in array.tolist()])
        return arrays[key]

    styles = [line_style(i) for i in range(len(runs))]
    values: dict[str, Any] = {
        "runs": [
            {"name": one_line(run.name), "color": style.color, "dash": style.dash}
            for run, style in zip(runs, styles, strict=True)
        ],
        "figures": [
            {
                "title": figure.title,
                "x": figure.x_labels,
                "smoothed": figure.smoothed,
                "series": [
                    {"run": one.run, "x": [*map(position, one.x)], "y": position(one.y)} for one in figure.series
                ],
            }
            for figure in figures
        ],
        "arrays": texts,
        "few_points": FEW_POINTS,
    }
    return json.dumps(values, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _has_points(run: Run, name: str) -> bool:
    return bool(len(metric_points(run, name)[2]))


def _rounded(value: float) -> float:
    """Round to six significant digits; integers, such as steps, stay exact."""
    return int(value) if value.is_integer() else float(f"{value:.6g}")


def _description(title: str, series: Sequence[tuple[str, Column, Column]]) -> str:
    """Describe a figure in words: first, last and extreme values of few runs, or the range over many."""
    if len(series) > DESCRIBED_RUNS:
        ends = [values[-1] for _, _, values in series]
        count = count_text(len(series), "run", "runs")
        return f"{title} of {count}; the last values are between {number_text(min(ends))} and {number_text(max(ends))}."
    texts = [
        f"{name} from {number_text(values[0])} at step {steps[0]:,.0f} to {number_text(values[-1])} at step "
        f"{steps[-1]:,.0f}, between {number_text(values.min())} and {number_text(values.max())}"
        for name, steps, values in series
    ]
    return f"{title}: {'; '.join(texts)}."
