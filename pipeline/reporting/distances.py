"""Fréchet distances over steps and hours, for checkpoints that were sampled and evaluated with the same settings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..artifacts.metric_bases import bases, differences
from .curves import Figure, Series
from .metrics import FRECHET, metric_name, sampling_text
from .runs import Run
from .tables import number_text

_Key = tuple[str, str, int | None, str]  # name of the metric, sampling settings, number of images, other bases
_Points = list[tuple[float, float]]  # (step or hours, value)


def draw_distances(runs: Sequence[Run]) -> tuple[list[Figure], str]:
    """Draw every distance with one line per run, over steps and over training time.

    Time is in GPU-hours where the number of GPUs of all runs in the figure is known, else in hours. Only runs that were
    evaluated at two or more steps with the same settings are drawn.

    Returns:
        The figures, and their sampling settings as text.
    """
    figures, settings = [], []
    for (metric, sampling, count, basis), series in _series(runs).items():
        title = f"{metric} of {count:,} images" if count else metric
        title += f" ({basis})" if basis else ""
        settings.append(sampling)
        figures.append(_figure(f"{title} vs. training steps", "step", runs, series))
        timed = {i: points for i, at_steps in series.items() if len(points := _over_hours(runs[i], at_steps)) > 1}
        if timed:
            unit = "GPU-hours" if all(runs[i].gpus for i in timed) else "hours"
            if unit == "GPU-hours":
                timed = {i: [(hours * (runs[i].gpus or 1), y) for hours, y in points] for i, points in timed.items()}
            figures.append(_figure(f"{title} vs. {unit} of training", unit, runs, timed))
    return figures, "; ".join(dict.fromkeys(settings))


def _figure(title: str, x_label: str, runs: Sequence[Run], series: dict[int, _Points]) -> Figure:
    columns = {i: np.array(points, dtype=np.float64).T for i, points in series.items()}
    drawn = tuple(Series(i, (x,), y) for i, (x, y) in columns.items())
    texts = [
        f"{runs[i].name} " + ", ".join(f"{number_text(y)} at {x:,.6g}" for x, y in points)
        for i, points in series.items()
    ]
    return Figure(title, (x_label,), drawn, f"{title}: {'; '.join(texts)}.")


def _series(runs: Sequence[Run]) -> dict[_Key, dict[int, _Points]]:
    """Return points over steps by comparable settings and position of the run; only runs with two or more steps."""
    found: dict[_Key, dict[int, _Points]] = {}
    evaluated = [(i, sample, sample.metrics) for i, run in enumerate(runs) for sample in run.samples if sample.metrics]
    for name in dict.fromkeys(name for _, _, record in evaluated for name in record.metrics):
        having = [entry for entry in evaluated if name in entry[2].metrics and entry[2].split(name)[0] in FRECHET]
        labels = differences(bases([record for _, _, record in having], name)) if having else []
        for (i, sample, record), basis in zip(having, labels, strict=True):
            key = metric_name(*record.split(name)), sampling_text(sample.config), record.num_samples, basis
            found.setdefault(key, {}).setdefault(i, []).append((sample.step, record.metrics[name]))
    kept = {
        key: {i: sorted(points) for i, points in by_run.items() if len(points) > 1} for key, by_run in found.items()
    }
    return {key: by_run for key, by_run in kept.items() if by_run}


def _over_hours(run: Run, points: _Points) -> _Points:
    """Return the values over hours of training, for the steps that the log covers."""
    steps, hours = run.columns["step"], np.cumsum(run.columns["seconds"]) / 3600
    rows = [(int(np.searchsorted(steps, step)), value) for step, value in points]
    return [(float(hours[row]), value) for row, value in rows if row < len(steps)]
