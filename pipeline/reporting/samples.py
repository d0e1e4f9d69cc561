"""The samples of the runs side by side: the same settings, so the same noise and labels, one grid a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..sampling.blocks import GRID_IMAGES
from .metrics import sampling_text
from .pictures import Picture, read_photograph
from .runs import Run, SampleSet
from .tables import seconds_text

MAX_GROUPS = 3
SIDE = 1024
GRID_BYTES = 300_000
ALL_GRIDS_BYTES = 1_400_000  # so that a page of twenty runs still travels by mail


@dataclass(frozen=True, slots=True)
class Grid:
    """One run's samples."""

    run: int
    name: str
    picture: Picture
    remark: str


@dataclass(frozen=True, slots=True)
class SampleGroup:
    """Grids that were sampled alike."""

    title: str
    grids: tuple[Grid, ...]


def latest_samples(run: Run) -> tuple[SampleSet, ...]:
    """Of the samples made with the same settings, those of the last step, and the most of them."""
    latest: dict[tuple[tuple[str, object], ...], SampleSet] = {}
    for sample in sorted(run.samples, key=lambda sample: (sample.step, sample.num_images)):
        latest[sample.settings] = sample
    return tuple(latest.values())


def sample_groups(runs: Sequence[Run]) -> tuple[list[SampleGroup], str]:
    """Grids by settings, those that most runs were sampled with first; and what is left out, in words."""
    by_settings: dict[tuple[tuple[str, object], ...], list[tuple[int, SampleSet]]] = {}
    for i, run in enumerate(runs):
        for sample in latest_samples(run):
            if sample.grid:
                by_settings.setdefault(sample.settings, []).append((i, sample))
    chosen = sorted(by_settings.values(), key=len, reverse=True)[:MAX_GROUPS]
    total = sum(len(run.samples) for run in runs)
    count = sum(map(len, chosen))
    budget = min(GRID_BYTES, ALL_GRIDS_BYTES // max(1, count))
    groups = [
        SampleGroup(sampling_text(pairs[0][1].config), tuple(_grid(i, runs[i], sample, budget) for i, sample in pairs))
        for pairs in chosen
    ]
    left_out = f"{total - count} of {total} sample sets are not shown: those of earlier steps, or of rarer settings."
    return groups, left_out if total > count else ""


def _grid(i: int, run: Run, sample: SampleSet, max_bytes: int) -> Grid:
    assert sample.grid is not None
    alt = f"Grid of images sampled from {run.name} at step {sample.step:,}"
    took = f", made in {seconds_text(sample.seconds)}" if sample.seconds else ""
    count = f"the first {GRID_IMAGES} of " if sample.num_images > GRID_IMAGES else ""
    remark = f"step {sample.step:,}; {count}{sample.num_images:,} images{took}"
    return Grid(i, run.name, read_photograph(sample.grid, alt, SIDE, max_bytes), remark)
