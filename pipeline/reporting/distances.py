"""Fréchet distances of a report against steps and hours, where checkpoints were sampled alike and judged alike."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .curves import Curves
from .metrics import FRECHET, sampling_text
from .plots import Line, line_figure
from .runs import Run, SampleSet


def draw_distances(runs: Sequence[Run]) -> Curves | None:
    """Two figures for each distance and way of sampling, with a line a run; None where no run has two steps of one.

    One against steps; one against GPU-hours where the number of GPUs of all its runs is known, else against hours.
    """
    from bokeh.embed import components

    names, figures, remarks = [], [], []
    for key, series in _series(runs).items():
        metric, sampling, count, _ = key
        title = f"{metric} of {count:,} samples" if count else metric
        remarks.append(sampling)
        names.append(f"{title} against training steps")
        figures.append(line_figure("step", metric, [_line(runs[i].name, sorted(at), i) for i, at in series.items()]))
        timed = {i: points for i, at in series.items() if (points := _at_hours(runs[i], at))}
        if timed:
            unit = "GPU-hours" if all(runs[i].gpus for i in timed) else "hours"
            scale = {i: runs[i].gpus or 1.0 if unit == "GPU-hours" else 1.0 for i in timed}
            lines = [
                _line(runs[i].name, [(hours * scale[i], value) for hours, value in at], i) for i, at in timed.items()
            ]
            names.append(f"{title} against {unit} of training")
            figures.append(line_figure(unit, metric, lines, x_format="0.[0000]"))
    if not figures:
        return None
    script, divs = components(tuple(figures))
    return Curves(tuple(names), tuple(divs), script, "; ".join(dict.fromkeys(remarks)))


def _at_hours(run: Run, points: Sequence[tuple[int, float]]) -> list[tuple[float, float]]:
    """The same values against hours of training, as far as the log tells them."""
    steps, hours = run.columns["step"], np.cumsum(run.columns["seconds"]) / 3600
    found = []
    for step, value in sorted(points):
        row = int(np.searchsorted(steps, step))
        if row < len(steps):
            found.append((float(hours[row]), value))
    return found if len(found) > 1 else []


def _line(name: str, points: Sequence[tuple[float, float]], position: int) -> Line:
    steps, values = zip(*points, strict=True)
    return Line(name, steps, values, position)


_Key = tuple[str, str, int | None, str]  # metric, sampling in words, samples, reference
_Points = dict[int, list[tuple[int, float]]]  # run → (step, value)


def _series(runs: Sequence[Run]) -> dict[_Key, _Points]:
    """Values by what makes them comparable; only runs with at least two steps."""
    found: dict[_Key, _Points] = {}
    for i, run in enumerate(runs):
        for one in run.samples:
            for key, value in _distances(one):
                found.setdefault(key, {}).setdefault(i, []).append((one.step, value))
    kept = {key: {i: points for i, points in by_run.items() if len(points) > 1} for key, by_run in found.items()}
    return {key: by_run for key, by_run in kept.items() if by_run}


def _distances(one: SampleSet) -> list[tuple[_Key, float]]:
    if one.metrics is None:
        return []
    judged = one.metrics
    alike = sampling_text(one.config), judged.num_samples, judged.reference
    return [((name, *alike), value) for name, value in judged.values.items() if judged.split(name)[0] in FRECHET]
