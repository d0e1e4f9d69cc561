"""Runs that differ only in the seed: one row of a table, with mean and standard deviation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...config import TrainConfig
from ..artifacts.metric_bases import all_bases
from ..artifacts.metric_files import MetricRecord
from .runs import Run, SampleSet


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and sample standard deviation; the deviation of a single value is None."""

    mean: float
    deviation: float | None
    count: int


def seed_groups(runs: Sequence[Run]) -> list[list[int]]:
    """Return the positions of runs grouped by all settings but the seed, in the order of the first run of each group.

    Only runs at the same step are grouped. Runs with the same seed are never grouped: they are repetitions, and their
    spread does not measure the effect of the seed.
    """
    names = [name for name in TrainConfig.result_fields() if name != "seed"]
    groups: dict[tuple[object, ...], list[int]] = {}
    for position, run in enumerate(runs):
        groups.setdefault((run.step, *(getattr(run.config, name) for name in names)), []).append(position)
    split = []
    for group in groups.values():
        seeds = {runs[position].config.seed for position in group}
        split += [group] if len(seeds) == len(group) else [[position] for position in group]
    return split


def spread(values: Sequence[float | None]) -> Spread | None:
    """Return the spread of the values that are not None, or None if there are none."""
    found = [value for value in values if value is not None]
    if not found:
        return None
    deviation = float(np.std(found, ddof=1)) if len(found) > 1 else None
    return Spread(float(np.mean(found)), deviation, len(found))


def comparable_metrics(runs: Sequence[Run]) -> list[MetricRecord | None]:
    """Return the metrics of each run at its last step, for the sampling and evaluation settings of most runs."""
    records = [sample.metrics for run in runs for sample in run.samples if sample.metrics]
    basis_of = {id(record): basis for record, basis in zip(records, all_bases(records), strict=True)}
    latest: list[dict[object, SampleSet]] = []
    for run in runs:
        by_settings: dict[object, SampleSet] = {}
        for sample in sorted(run.samples, key=lambda sample: sample.step):
            if record := sample.metrics:
                by_settings[sample.settings, basis_of[id(record)]] = sample
        latest.append(by_settings)
    settings_of_all = [settings for by_settings in latest for settings in by_settings]
    if not settings_of_all:
        return [None] * len(runs)
    common = max(dict.fromkeys(settings_of_all), key=settings_of_all.count)
    return [by_settings[common].metrics if common in by_settings else None for by_settings in latest]
