"""EP_FID@k: epochs of training until the FID of images without guidance is at most k (RAEv2, arXiv 2605.18324).

The published number has no published code. Here it is the epoch of the first evaluated checkpoint, not interpolated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .distances import Points, distances_over_steps
from .runs import Run
from .tables import Cell, Table

METRIC = "fid"
LEVELS = (2, 3, 5, 10, 20, 50, 100, 200)  # of k; published: 2
MAX_LEVELS = 4  # the lowest that any run has reached


class Reached(NamedTuple):
    """When a run reached a FID."""

    epochs: float
    is_first: bool  # at the first evaluated checkpoint: it may have been reached earlier


def epochs_to_fid(runs: Sequence[Run]) -> dict[int, list[Reached | None]]:
    """Return when each run reached the lowest FIDs of LEVELS that any of them did; None for runs that did not.

    Only images of the most common sampling and evaluation settings without guidance are used, and only runs that record
    the number of their training images.
    """
    found = [by_run for key, by_run in distances_over_steps(runs).items() if key.name == METRIC and not key.is_guided]
    points = max(found, key=len, default={})
    reached = {level: [_reached(run, points.get(i, []), level) for i, run in enumerate(runs)] for level in LEVELS}
    lowest = [level for level in LEVELS if any(reached[level])][:MAX_LEVELS]
    return {level: reached[level] for level in lowest}


def epochs_table(runs: Sequence[Run]) -> Table | None:
    """Return epochs until each FID, one row per run; None when no run has reached any."""
    found = epochs_to_fid(runs)
    if not found:
        return None
    header = (Cell("Run"), *(Cell(f"FID ≤ {level}", "epochs", numeric=True) for level in found))
    rows = [(Cell(run.name, run=i), *(_cell(reached[i]) for reached in found.values())) for i, run in enumerate(runs)]
    caption = (
        "Epochs of training until the FID of images without guidance is so low (EP_FID): those of the first evaluated "
        "checkpoint, not interpolated; ≤: the first of all evaluated ones."
    )
    return Table(caption, header, tuple(rows))


def _reached(run: Run, points: Points, level: float) -> Reached | None:
    if run.images is None:
        return None
    for position, (step, value) in enumerate(points):
        if value <= level:
            return Reached(step * run.config.batch_size / run.images, position == 0)
    return None


def _cell(reached: Reached | None) -> Cell:
    if reached is None:
        return Cell("–", numeric=True)
    return Cell(f"{'≤ ' if reached.is_first else ''}{reached.epochs:,.4g}", numeric=True, value=reached.epochs)
