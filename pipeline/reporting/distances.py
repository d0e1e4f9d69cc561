"""Fréchet distances over steps and hours, for checkpoints that were sampled and evaluated with the same settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ..artifacts.metric_bases import bases, differences
from .curves import Figure, Series
from .metrics import FRECHET, metric_name, sampling_text
from .runs import Run
from .tables import number_text

Points = list[tuple[float, float]]  # (step or hours, value), in the order of steps


class Key(NamedTuple):
    """What distances must share to be comparable."""

    name: str  # of the metric, such as `fid`
    detector: str
    settings: tuple[tuple[str, Any], ...]  # of sampling
    is_guided: bool
    num_samples: int | None
    basis: str  # what else the values are based on, where that differs


def draw_distances(runs: Sequence[Run]) -> tuple[list[Figure], str]:
    """Draw every distance with one line per run, over steps and over training time.

    Time is in GPU-hours where the number of GPUs of all runs in the figure is known, else in hours. Only runs that were
    evaluated at two or more steps with the same settings are drawn.

    Returns:
        The figures, and their sampling settings as text.
    """
    figures, settings = [], []
    for key, every_series in distances_over_steps(runs).items():
        series = {i: points for i, points in every_series.items() if len(points) > 1}
        if not series:
            continue
        metric = metric_name(key.name, key.detector)
        title = f"{metric} of {key.num_samples:,} images" if key.num_samples else metric
        title += f" ({key.basis})" if key.basis else ""
        settings.append(_sampling(runs, key))
        figures.append(_figure(f"{title} vs. training steps", "step", runs, series))
        timed = {i: points for i, at_steps in series.items() if len(points := _over_hours(runs[i], at_steps)) > 1}
        if timed:
            unit = "GPU-hours" if all(runs[i].gpus for i in timed) else "hours"
            if unit == "GPU-hours":
                timed = {i: [(hours * (runs[i].gpus or 1), y) for hours, y in points] for i, points in timed.items()}
            figures.append(_figure(f"{title} vs. {unit} of training", unit, runs, timed))
    return figures, "; ".join(dict.fromkeys(settings))


def _figure(title: str, x_label: str, runs: Sequence[Run], series: dict[int, Points]) -> Figure:
    columns = {i: np.array(points, dtype=np.float64).T for i, points in series.items()}
    drawn = tuple(Series(i, (x,), y) for i, (x, y) in columns.items())
    texts = [
        f"{runs[i].name} " + ", ".join(f"{number_text(y)} at {x:,.6g}" for x, y in points)
        for i, points in series.items()
    ]
    return Figure(title, (x_label,), drawn, f"{title}: {'; '.join(texts)}.")


def distances_over_steps(runs: Sequence[Run]) -> dict[Key, dict[int, Points]]:
    """Return every Fréchet distance over steps, by what makes distances comparable and by the position of the run."""
    found: dict[Key, dict[int, Points]] = {}
    evaluated = [(i, sample, sample.metrics) for i, run in enumerate(runs) for sample in run.samples if sample.metrics]
    evaluated.sort(key=lambda entry: entry[1].step)
    for name in dict.fromkeys(name for _, _, record in evaluated for name in record.metrics):
        having = [entry for entry in evaluated if name in entry[2].metrics and entry[2].split(name)[0] in FRECHET]
        labels = differences(bases([record for _, _, record in having], name)) if having else []
        for (i, sample, record), basis in zip(having, labels, strict=True):
            key = Key(*record.split(name), sample.settings, sample.config.is_guided, record.num_samples, basis)
            found.setdefault(key, {}).setdefault(i, []).append((sample.step, record.metrics[name]))
    return found


def _sampling(runs: Sequence[Run], key: Key) -> str:
    return next(sampling_text(each.config) for run in runs for each in run.samples if each.settings == key.settings)


def _over_hours(run: Run, points: Points) -> Points:
    """Return the values over hours of training, for the steps that the log covers."""
    steps, hours = run.columns["step"], np.cumsum(run.columns["seconds"]) / 3600
    rows = [(int(np.searchsorted(steps, step)), value) for step, value in points]
    return [(float(hours[row]), value) for row, value in rows if row < len(steps)]
