"""The runs side by side: headline, settings that differ, losses, metrics of samples, time."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..config import TrainConfig, flag
from ..stores import Store
from .report_runs import Metrics, Run, SampleSet
from .report_store import store_name
from .report_tables import Cell, Table, count_text, list_text, number_text, seconds_text, value_text

_TITLES = {
    "fid": "FID",
    "sfid": "sFID",
    "fd": "FD",
    "kid": "KID",
    "kd": "KD",
    "inception_score": "IS",
    "precision": "Precision",
    "recall": "Recall",
}
_MORE_IS_BETTER = {"inception_score", "precision", "recall"}
_NAMES = ("exp_name",)  # says which run it is, not how it was made


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
        facts.append(("Images", f"{len(store):,} of {classes}, store {store_name(store.path)}"))
    return Headline(sentence, tuple(facts))


def settings_that_differ(runs: Sequence[Run]) -> list[str]:
    """Fields of TrainConfig that shaped the runs and are not the same in all."""
    return [name for name in _settings() if len({getattr(run.config, name) for run in runs}) > 1]


def shared_settings(runs: Sequence[Run]) -> Table:
    """The settings that all runs have in common."""
    different = settings_that_differ(runs)
    rows = tuple(
        (Cell(flag(name)), Cell(value_text(getattr(runs[0].config, name))))
        for name in _settings()
        if name not in different
    )
    caption = "Settings that all runs share" if len(runs) > 1 else "Settings of the run"
    return Table(caption, (Cell("Setting"), Cell("Value")), rows)


def comparison(runs: Sequence[Run], shown: Sequence[Sequence[SampleSet]]) -> Table:
    """A row a run, or more where it was sampled with several settings; `shown` has the sample sets of each run."""
    different = settings_that_differ(runs)
    pairs = [(i, sample) for i in range(len(runs)) for sample in ([s for s in shown[i] if s.metrics] or [None])]
    metrics = [sample.metrics if sample else None for _, sample in pairs]
    columns = _metric_columns(metrics)
    sampling = len({sample.settings for _, sample in pairs if sample}) > 1
    header = [Cell("Run"), *(Cell(flag(name)) for name in different), Cell("Steps", numeric=True)]
    header += [Cell("Denoising loss", numeric=True), Cell("Alignment loss", numeric=True)]
    header += [Cell("Sampled with")] if sampling else []
    header += [Cell(_title(name), detector, numeric=True) for name, detector in columns.values()]
    header += [Cell("Samples", "against reference images", numeric=True)] if columns else []
    best = _best(columns, metrics)
    rows = []
    for (i, sample), found in zip(pairs, metrics, strict=True):
        run = runs[i]
        row = [Cell(run.name, run=i), *(Cell(value_text(getattr(run.config, name))) for name in different)]
        row += [Cell(f"{run.step:,}", numeric=True), _loss(run.final("denoising_loss"))]
        row += [_loss(run.final("alignment_loss") if run.is_aligned else None)]
        row += [Cell(sampling_text(sample) if sample else "–")] if sampling else []
        row += [_metric(found, name, best.get(name)) for name in columns]
        row += [_counts(found)] if columns else []
        rows.append(tuple(row))
    return Table(_caption(runs, bool(best)), tuple(header), tuple(rows))


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
        for column in ("denoising_loss", "alignment_loss")[: 1 + run.is_aligned]:
            nearest = [int(np.abs(run.columns["step"] - step).argmin()) if run.step >= step else None for step in steps]
            losses = [_loss(None if row is None else float(run.columns[column][row])) for row in nearest]
            rows.append((Cell(run.name, run=i), Cell(column.removesuffix("_loss")), *losses))
    return Table("Losses as logged nearest to a step", header, tuple(rows))


def sampling_text(sample: SampleSet) -> str:
    """`ODE, 50 steps, guidance 1.5 from 0 to 1, labels random, seed 0`."""
    config = sample.config
    solver = "SDE" if config.mode == "sde" else ("ODE with Heun's steps" if config.heun else "ODE")
    interval = (
        ""
        if (config.guidance_low, config.guidance_high) == (0.0, 1.0)
        else (f" from {config.guidance_low:g} to {config.guidance_high:g}")
    )
    guidance = "no guidance" if config.cfg_scale == 1 else f"guidance {config.cfg_scale:g}{interval}"
    weights = "" if config.ema else ", weights not averaged"
    vae = f", decoded by {config.vae}" if config.vae else ""
    return (
        f"{solver}, {config.num_steps} steps, {guidance}, labels {config.labels}, seed {config.global_seed}"
        f"{weights}{vae}, {config.precision}"
    )


def _settings() -> list[str]:
    return [
        item.name
        for item in dataclasses.fields(TrainConfig)
        if not item.metadata["harmless"] and item.name not in _NAMES
    ]


def _caption(runs: Sequence[Run], has_best: bool) -> str:
    parts = ["Losses are means of the last twentieth of each run's log."]
    if len(runs) > 1:
        parts.insert(0, "Of the settings only those that differ are shown.")
    if len({run.config.enc_type for run in runs if run.is_aligned}) > 1:
        parts.append("Alignment losses with different encoders cannot be compared.")
    if has_best:
        parts.append("The best of a metric is bold.")
    return " ".join(parts)


def _metric_columns(metrics: Sequence[Metrics | None]) -> dict[str, tuple[str, str]]:
    """Metric → (its name, its detector), in the order of first appearance."""
    return {name: found.split(name) for found in metrics if found for name in found.values}


def _title(name: str) -> str:
    return f"{_TITLES.get(name, name)} {'↑' if name in _MORE_IS_BETTER else '↓'}"


def _best(columns: dict[str, tuple[str, str]], metrics: Sequence[Metrics | None]) -> dict[str, float]:
    """The best value of each metric, where there are several and all were counted alike."""
    found = [entry for entry in metrics if entry]
    if len(found) < 2 or len({(entry.num_samples, entry.num_reference, entry.reference) for entry in found}) > 1:
        return {}
    best = {}
    for key, (name, _) in columns.items():
        values = [entry.values[key] for entry in found if key in entry.values]
        if len(set(values)) > 1:
            best[key] = max(values) if name in _MORE_IS_BETTER else min(values)
    return best


def _metric(found: Metrics | None, name: str, best: float | None) -> Cell:
    if found is None or name not in found.values:
        return Cell("–", numeric=True)
    return Cell(number_text(found.values[name]), numeric=True, best=found.values[name] == best)


def _counts(found: Metrics | None) -> Cell:
    if found is None:
        return Cell("–", numeric=True)
    samples = "?" if found.num_samples is None else f"{found.num_samples:,}"
    reference = "statistics" if found.num_reference is None else f"{found.num_reference:,}"
    return Cell(samples, f"against {reference}", numeric=True)


def _loss(value: float | None) -> Cell:
    return Cell("–" if value is None else f"{value:.4f}", numeric=True)


def _distinct(values: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(values))
