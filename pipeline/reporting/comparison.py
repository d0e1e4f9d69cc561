"""Comparison of the runs: summary, settings that differ, losses, timing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ...config import TrainConfig, flag
from ...stores import Store
from .metrics import FRECHET, metric_title
from .runs import Run
from .seeds import Spread, comparable_metrics, seed_groups, spread
from .store import store_name
from .tables import Cell, GroupedTable, Table, count_text, list_text, minus, number_text, seconds_text, value_text


@dataclass(frozen=True, slots=True)
class Headline:
    """A sentence that summarizes the runs, and their properties."""

    sentence: str
    properties: tuple[tuple[str, str], ...]


def headline(runs: Sequence[Run], store: Store | None) -> Headline:
    """Return models, data and encoders of the runs, for the top of the report."""
    models = list_text(_distinct([run.config.model for run in runs]))
    vaes = list_text(_distinct([str(run.config.token_latents or run.config.vae) for run in runs]))
    encoders = _distinct([encoder for run in runs for encoder in run.config.enc_type])
    batches = _distinct([f"{run.config.batch_size:,}" for run in runs])
    steps = _distinct([f"{run.step:,}" for run in runs])
    encoded_with = vaes + (f" and {list_text(encoders)}" if encoders else "")
    if store is None:
        data = f"on the images of the store {list_text(_distinct([run.config.store for run in runs]))}"
    else:
        side = store.manifest.resolution
        data = f"from a store of {count_text(len(store), 'image', 'images')} at {side} × {side} pixels"
    count = count_text(len(runs), "run", "runs")
    properties = [
        ("Model", models),
        ("Aligned with", list_text(encoders) if encoders else "none"),
        ("VAE", vaes),
        ("Steps", list_text(steps)),
        ("Batch size", list_text(batches)),
    ]
    if store is not None:
        classes = count_text(len(store.manifest.class_names), "class", "classes")
        properties += [("Images", f"{len(store):,} in {classes}"), ("Store", store_name(store.location))]
    return Headline(f"{count} of {models}, trained {data}, encoded once with {encoded_with}.", tuple(properties))


def settings_that_differ(runs: Sequence[Run]) -> list[str]:
    """Return the fields of TrainConfig that affect the result and differ between the runs."""
    return [name for name in TrainConfig.result_fields() if len({getattr(run.config, name) for run in runs}) > 1]


def shared_settings(runs: Sequence[Run]) -> Table:
    """Return the settings that all runs share."""
    different = settings_that_differ(runs)
    rows = tuple(
        (Cell(flag(name)), Cell(value_text(getattr(runs[0].config, name))))
        for name in TrainConfig.result_fields()
        if name not in different
    )
    caption = "Settings shared by all runs" if len(runs) > 1 else "Settings of the run"
    return Table(caption, (Cell("Setting"), Cell("Value")), rows)


def comparison_table(runs: Sequence[Run]) -> GroupedTable:
    """Return settings that differ, last step, losses and Fréchet distances, with a row of means over seeds."""
    different = settings_that_differ(runs)
    metrics = comparable_metrics(runs) if len(runs) > 1 else [None] * len(runs)
    names = {key: record.split(key) for record in metrics if record for key in record.metrics}
    columns = {key: split for key, split in names.items() if split[0] in FRECHET}
    header = [Cell("Run"), *(Cell(flag(name)) for name in different), Cell("Steps", numeric=True)]
    header += [Cell("Denoising loss", numeric=True), Cell("Alignment loss", numeric=True)]
    header += [Cell(metric_title(name), detector, numeric=True) for name, detector in columns.values()]
    figures = [
        [run.final("denoising_loss"), run.final("alignment_loss") if run.is_aligned else None]
        + [record.metrics.get(key) if record else None for key in columns]
        for run, record in zip(runs, metrics, strict=True)
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
    """Return the row that summarizes runs that differ only in the seed."""
    settings = [
        Cell(", ".join(str(run.config.seed) for run in runs))
        if name == "seed"
        else _setting(getattr(runs[0].config, name))
        for name in different
    ]
    spreads = [spread(column) for column in zip(*figures, strict=True)]
    return (
        Cell(f"{len(runs)} seeds"),
        *settings,
        Cell(f"{runs[0].step:,}", numeric=True, value=runs[0].step),
        *(_spread(one, _loss) for one in spreads[:2]),
        *(_spread(one, _metric) for one in spreads[2:]),
    )


def _setting(value: object) -> Cell:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return Cell(value_text(value), value=float(value) if is_number else None)  # type: ignore[arg-type]


def _spread(found: Spread | None, format_value: Callable[[float | None], Cell]) -> Cell:
    if found is None or found.deviation is None:
        return format_value(None if found is None else found.mean)
    text = f"{format_value(found.mean).text} ± {format_value(found.deviation).text}"
    return Cell(text, numeric=True, value=found.mean)


def _metric(value: float | None) -> Cell:
    return Cell("–" if value is None else number_text(value), numeric=True, value=value)


def timing_table(runs: Sequence[Run]) -> Table:
    """Return training time, throughput, reads, the fraction of time spent waiting for data, and memory, per run."""
    header = (
        "Run", "Steps", "Training time", "Images per second", "Read per image", "Data wait", "Peak memory",
        "Last checkpoint",
    )  # fmt: skip
    rows = []
    for i, run in enumerate(runs):
        seconds = run.columns["seconds"]
        total = float(seconds.sum())
        wait = float((run.columns["data_wait"] * seconds).sum() / total) if total else 0.0
        rate = f"{np.median(run.columns['images_per_s']):,.1f}" if run.num_rows else "–"
        peaks = run.columns.get("memory_gib", np.full(1, np.nan))  # of earlier versions, not logged
        memory = "–" if np.isnan(peaks).all() else f"{np.nanmax(peaks):.1f} GiB"
        read = "–" if run.bytes_per_image is None else f"{run.bytes_per_image:,} bytes"
        texts = (f"{run.step:,}", seconds_text(total), rate, read, f"{wait:.2%}", memory, run.last_checkpoint or "none")
        rows.append((Cell(run.name, run=i), *(Cell(text, numeric=True) for text in texts)))
    caption = (
        "Images per second: median over the rows of the log. Read per image: at the first step. Data wait: fraction of "
        "the training time."
    )
    return Table(caption, tuple(Cell(text, numeric=i > 0) for i, text in enumerate(header)), tuple(rows))


def _caption(runs: Sequence[Run], has_seeds: bool) -> str:
    sentences = ["Losses are means over the last 5% of each run's log."]
    if len(runs) > 1 and settings_that_differ(runs):
        sentences.insert(0, "Only settings that differ are shown.")
    if has_seeds:
        sentences.append("Runs that differ only in the seed share a row: mean ± sample standard deviation.")
    if len({run.config.enc_type for run in runs if run.is_aligned}) > 1:
        sentences.append("Alignment losses with different encoders are not comparable.")
    return " ".join(sentences)


def _loss(value: float | None) -> Cell:
    return Cell("–" if value is None else minus(f"{value:.4f}"), numeric=True, value=value)


def _distinct(values: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(values))
