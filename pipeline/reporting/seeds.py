"""Runs that are equal but for the seed: one row of a table, with mean and spread."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...config import TrainConfig
from .runs import Metrics, Run, SampleSet


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and sample standard deviation; no deviation of a single value."""

    mean: float
    deviation: float | None
    count: int


def shaping_settings() -> list[str]:
    """The options of train that make a run what it is: not its name, and none that may change on the way."""
    return [
        item.name
        for item in dataclasses.fields(TrainConfig)
        if not item.metadata["harmless"] and item.name != "exp_name"
    ]


def seed_groups(runs: Sequence[Run]) -> list[list[int]]:
    """Positions of runs that differ in nothing but their seed, in the order of the first of each.

    Runs that have come less far stay apart, and so do runs that do not even differ in the seed: repetitions, whose
    spread says nothing.
    """
    names = [name for name in shaping_settings() if name != "seed"]
    groups: dict[tuple[object, ...], list[int]] = {}
    for position, run in enumerate(runs):
        groups.setdefault((run.step, *(getattr(run.config, name) for name in names)), []).append(position)
    split = []
    for group in groups.values():
        seeds = {runs[position].config.seed for position in group}
        split += [group] if len(seeds) == len(group) else [[position] for position in group]
    return split


def spread(values: Sequence[float | None]) -> Spread | None:
    """Of the values that there are; None of none."""
    found = [value for value in values if value is not None]
    if not found:
        return None
    deviation = float(np.std(found, ddof=1)) if len(found) > 1 else None
    return Spread(float(np.mean(found)), deviation, len(found))


def judged_alike(runs: Sequence[Run]) -> list[Metrics | None]:
    """For each run the metrics of its last step, of the way of sampling and judging that most runs share."""
    latest: list[dict[object, SampleSet]] = []
    for run in runs:
        found: dict[object, SampleSet] = {}
        for one in sorted(run.samples, key=lambda one: one.step):
            if one.metrics:
                found[one.settings, one.metrics.num_samples, one.metrics.num_reference, one.metrics.reference] = one
        latest.append(found)
    keys = [key for found in latest for key in found]
    if not keys:
        return [None] * len(runs)
    common = max(dict.fromkeys(keys), key=keys.count)
    return [found[common].metrics if common in found else None for found in latest]
