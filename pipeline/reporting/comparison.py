"""The runs side by side: headline, settings that differ, losses, time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ...config import flag
from ...stores import Store
from .metrics import FRECHET, metric_title
from .runs import Run
from .seeds import Spread, judged_alike, seed_groups, shaping_settings, spread
from .store import store_name
from .tables import Cell, GroupedTable, Table, count_text, list_text, minus, number_text, seconds_text, value_text


@dataclass(frozen=True, slots=True)
class Headline:
    """What was trained from what: one sentence, a few facts."""

    sentence: str
    facts: tuple[tuple[str, str], ...]


def headline(runs: Sequence[Run], store: Store | None) -> Headline:
    """The first thing that a reader sees."""
    models = list_text(_distinct([run.config.model for run in runs]))
    vaes = list_text(_distinct([str(run.config.vae) for run in runs]))
    encoders = _distinct([encoder for run in runs for encoder in run.config.enc_type])
    batches = _distinct([f"{run.config.batch_size:,}" for run in runs])
    steps = _distinct([f"{run.step:,}" for run in runs])
    aligned = f" and {list_text(encoders)}" if encoders else ""
    if store is None:
        images = f"the store {list_text(_distinct([run.config.store for run in runs]))}"
    else:
        side = store.manifest.resolution
        images = f"{count_text(len(store), 'image', 'images')} at {side} × {side} pixels"
    sentence = (
        f"{count_text(len(runs), 'run', 'runs')} of {models}, trained from {images}, encoded once with {vaes}{aligned}."
    )
    facts = [
        ("Model", models),
        ("Aligned with", list_text(encoders) if encoders else "nothing"),
        ("VAE", vaes),
        ("Steps", f"{list_text(steps)} of {list_text(batches)} images"),
    ]
    if store is not None:
        classes = count_text(len(store.manifest.class_names), "class", "classes")
        facts += [("Images", f"{len(store):,} in {classes}"), ("Store", store_name(store.path))]
    return Headline(sentence, tuple(facts))


def settings_that_differ(runs: Sequence[Run]) -> list[str]:
    """Fields of TrainConfig that shaped the runs and are not the same in all."""
    return [name for name in shaping_settings() if len({getattr(run.config, name) for run in runs}) > 1]


def shared_settings(runs: Sequence[Run]) -> Table:
    """The settings that all runs have in common."""
    different = settings_that_differ(runs)
    rows = tuple(
        (Cell(flag(name)), Cell(value_text(getattr(runs[0].config, name))))
        for name in shaping_settings()
        if name not in different
    )
    caption = "Settings that all runs share" if len(runs) > 1 else "Settings of the run"
    return Table(caption, (Cell("Setting"), Cell("Value")), rows)


def comparison(runs: Sequence[Run]) -> GroupedTable:
    """Where the runs differ, how far they came, their Fréchet distances: those equal but for the seed in one group."""
    different = settings_that_differ(runs)
    metrics = judged_alike(runs) if len(runs) > 1 else [None] * len(runs)
    named = {name: found.split(name) for found in metrics if found for name in found.values}
    columns = {name: words for name, words in named.items() if words[0] in FRECHET}
    header = [Cell("Run"), *(Cell(flag(name)) for name in different), Cell("Steps", numeric=True)]
    header += [Cell("Denoising loss", numeric=True), Cell("Alignment loss", numeric=True)]
    header += [Cell(metric_title(name), detector, numeric=True) for name, detector in columns.values()]
    figures = [
        [run.final("denoising_loss"), run.final("alignment_loss") if run.is_aligned else None]
        + [found.values.get(name) if found else None for name in columns]
        for run, found in zip(runs, metrics, strict=True)
    ]
    groups = []
    for members in seed_groups(runs):
        rows = [_run_row(i, runs[i], different, figures[i]) for i in members]
        if len(members) > 1:
            rows.insert(0, _mean_row([runs[i] for i in members], different, [figures[i] for i in members]))
        groups.append(tuple(rows))
    return GroupedTable(_caption(runs, any(len(group) > 1 for group in groups)), tuple(header), tuple(groups))


def _run_row(i: int, run: Run, different: Sequence[str], figures: Sequence[float | None]) -> tuple[Cell, ...]:
    settings = (_setting(getattr(run.config, name)) for name in different)
    steps = Cell(f"{run.step:,}", numeric=True, value=run.step)
    losses, metrics = figures[:2], figures[2:]
    return (Cell(run.name, run=i), *settings, steps, *map(_loss, losses), *map(_metric, metrics))


def _mean_row(
    runs: Sequence[Run], different: Sequence[str], figures: Sequence[Sequence[float | None]]
) -> tuple[Cell, ...]:
    """What stands for runs that differ in the seed alone."""
    settings = [
        Cell(", ".join(str(run.config.seed) for run in runs))
        if name == "seed"
        else _setting(getattr(runs[0].config, name))
        for name in different
    ]
    found = [spread(column) for column in zip(*figures, strict=True)]
    return (
        Cell(f"{len(runs)} seeds"),
        *settings,
        Cell(f"{runs[0].step:,}", numeric=True, value=runs[0].step),
        *(_spread(one, _loss) for one in found[:2]),
        *(_spread(one, _metric) for one in found[2:]),
    )


def _setting(value: object) -> Cell:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return Cell(value_text(value), value=float(value) if is_number else None)  # type: ignore[arg-type]


def _spread(found: Spread | None, write: Callable[[float | None], Cell]) -> Cell:
    if found is None or found.deviation is None:
        return write(None if found is None else found.mean)
    text = f"{write(found.mean).text} ± {write(found.deviation).text}"
    return Cell(text, numeric=True, value=found.mean)


def _metric(value: float | None) -> Cell:
    return Cell("–" if value is None else number_text(value), numeric=True, value=value)


def timing(runs: Sequence[Run]) -> Table:
    """How long the runs took and how long they waited for data."""
    header = ("Run", "Logged steps", "Time", "Images a second", "Waiting for data", "Last checkpoint")
    rows = []
    for i, run in enumerate(runs):
        seconds = run.columns["seconds"]
        total = float(seconds.sum())
        wait = float((run.columns["data_wait"] * seconds).sum() / total) if total else 0.0
        rate = f"{np.median(run.columns['images_per_s']):,.1f}" if run.num_rows else "–"
        texts = (f"{run.step:,}", seconds_text(total), rate, f"{wait:.2%}", run.last_checkpoint or "none")
        rows.append((Cell(run.name, run=i), *(Cell(text, numeric=True) for text in texts)))
    caption = "Images a second is the median over the log's rows, waiting the share of all logged time"
    return Table(caption, tuple(Cell(text, numeric=i > 0) for i, text in enumerate(header)), tuple(rows))


def losses_at_steps(runs: Sequence[Run], points: int = 10) -> Table:
    """The curves as numbers: losses of the log rows nearest to evenly spaced steps."""
    last = max(run.step for run in runs)
    steps = np.unique(np.linspace(0, last, points + 1).round()[1:].astype(int))
    header = (Cell("Run"), Cell("Loss"), *(Cell(f"{step:,}", numeric=True) for step in steps))
    rows = []
    for i, run in enumerate(runs):
        if not run.num_rows:
            continue
        for column in ("denoising_loss", "alignment_loss")[: 1 + run.is_aligned]:
            nearest = [int(np.abs(run.columns["step"] - step).argmin()) if run.step >= step else None for step in steps]
            losses = [_loss(None if row is None else float(run.columns[column][row])) for row in nearest]
            rows.append((Cell(run.name, run=i), Cell(column.removesuffix("_loss")), *losses))
    return Table("Losses as logged nearest to a step", header, tuple(rows))


def _caption(runs: Sequence[Run], has_seeds: bool) -> str:
    parts = ["Losses are means of the last twentieth of each run's log."]
    if len(runs) > 1:
        parts.insert(0, "Of the settings only those that differ are shown." if settings_that_differ(runs) else "")
    if has_seeds:
        parts.append("Runs that differ in the seed alone are one row: mean ± sample standard deviation.")
    if len({run.config.enc_type for run in runs if run.is_aligned}) > 1:
        parts.append("Alignment losses with different encoders cannot be compared.")
    return " ".join(filter(None, parts))


def _loss(value: float | None) -> Cell:
    return Cell("–" if value is None else minus(f"{value:.4f}"), numeric=True, value=value)


def _distinct(values: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(values))
