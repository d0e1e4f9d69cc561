"""Metrics of the generated images, each with its detector and the numbers of images."""

from __future__ import annotations

from collections.abc import Sequence

from ...config import SampleConfig, flag
from ..artifacts.metric_files import MetricRecord
from .runs import Run, SampleSet
from .tables import Cell, Table, count_text, number_text, value_text

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
FRECHET = {"fid", "sfid", "fd"}
_GUIDANCE = {"cfg": "CFG", "internal": "internal guidance", "path_drop": "path-drop guidance"}
_MORE_IS_BETTER = {"inception_score", "precision", "recall"}

NO_BREAK_SPACE = "\u00a0"

Evaluated = tuple[int, SampleSet, MetricRecord]  # position of the run, its generated images, their metrics


def metrics_table(runs: Sequence[Run], samples: Sequence[Sequence[SampleSet]]) -> Table | None:
    """Return one row per run and sampling settings, or None when nothing has been evaluated.

    `samples` holds the sets of generated images of each run.
    """
    evaluated = _evaluated(samples)
    if not evaluated:
        return None
    columns = {key: record.split(key) for _, _, record in evaluated for key in record.metrics}
    different = _settings_that_differ([sample for _, sample, _ in evaluated])
    best = _best(columns, [record for _, _, record in evaluated])
    header = [Cell("Run"), *([Cell("Sampling")] if different else []), Cell("Step", numeric=True)]
    header += [Cell(metric_title(name), detector, numeric=True) for name, detector in columns.values()]
    header += [Cell("Images", "generated vs. reference", numeric=True)]
    rows = []
    for i, sample, record in evaluated:
        values = {flag(name): value_text(dict(sample.settings)[name]) for name in different}
        settings = ", ".join(f"{name}{NO_BREAK_SPACE}{value}" for name, value in values.items())
        row = [Cell(runs[i].name, run=i), *([Cell(settings)] if different else [])]
        row += [Cell(f"{sample.step:,}", numeric=True), *(_metric(record, key, best.get(key)) for key in columns)]
        rows.append((*row, Cell(" vs. ".join(_counts(record)), numeric=True)))
    return Table(_caption(evaluated, bool(best)), tuple(header), tuple(rows))


def lowest_distance(runs: Sequence[Run], samples: Sequence[Sequence[SampleSet]]) -> tuple[str, str] | None:
    """Return title and text of the lowest Fréchet distance; None without distances, or if they are not comparable."""
    evaluated = _evaluated(samples)
    names = [(key, *record.split(key)) for _, _, record in evaluated for key in record.metrics]
    key, name, detector = next((entry for entry in names if entry[1] in FRECHET), ("", "", ""))
    if not key or not _are_comparable([record for _, _, record in evaluated]):
        return None
    i, _, best = min((entry for entry in evaluated if key in entry[2].metrics), key=lambda entry: entry[2].metrics[key])
    lowest = "Lowest " if len(evaluated) > 1 else ""
    generated, reference = _counts(best, key)
    counts = f"{generated} generated images vs. {reference} of the reference"
    return f"{lowest}{_TITLES[name]}", f"{number_text(best.metrics[key])} for {runs[i].name} ({detector}; {counts})"


def sampling_text(config: SampleConfig) -> str:
    """Return the sampling settings: `SDE, 250 steps, CFG scale 1.8 for t in [0, 0.7], random labels, seed 0`."""
    labels = f"{config.labels} labels" if config.labels.isalpha() else f"labels {config.labels}"
    solver = config.mode.upper() + (" (Heun)" if config.heun else "")
    parts = [
        solver,
        count_text(config.num_steps, "step", "steps"),
        _guidance_text(config),
        labels,
        f"seed {config.global_seed}",
    ]
    parts += [f"{config.path_type} path"] if config.path_type else []
    parts += [f"time shift {config.time_shift:g}"] if config.time_shift is not None else []
    parts += [] if config.ema else ["no EMA"]
    parts += [f"decoded with {each}" for each in (config.vae, config.decoder) if each]
    return ", ".join(parts)


def _guidance_text(config: SampleConfig) -> str:
    if not config.is_guided:
        return "no CFG"
    kind = "autoguidance" if config.guidance_checkpoint else _GUIDANCE[config.guidance]
    cls_scale = "" if config.cls_cfg_scale is None else f" (class token: {config.cls_cfg_scale:g})"
    channels = "" if config.guidance_channels is None else f" of {config.guidance_channels} channels"
    times = f"t in [{config.guidance_low:g}, {config.guidance_high:g}]"
    return f"{kind} scale {config.cfg_scale:g}{channels}{cls_scale} for {times}"


def metric_title(name: str) -> str:
    """Return the display name of a metric with its direction: `FID ↓`, `Precision ↑`."""
    return f"{_TITLES.get(name, name)} {'↑' if name in _MORE_IS_BETTER else '↓'}"


def metric_name(name: str, detector: str) -> str:
    """Return the display name of a metric with its detector: `FD (dinov2-vit-b)`."""
    return f"{_TITLES.get(name, name)} ({detector})"


def _evaluated(samples: Sequence[Sequence[SampleSet]]) -> list[Evaluated]:
    """Return the sets with metrics, ordered so that those to compare, with the same settings, are adjacent."""
    evaluated = [(i, sample, sample.metrics) for i, sets in enumerate(samples) for sample in sets if sample.metrics]
    order = list(dict.fromkeys(sample.settings for _, sample, _ in evaluated))
    return sorted(evaluated, key=lambda entry: order.index(entry[1].settings))


def _settings_that_differ(samples: Sequence[SampleSet]) -> list[str]:
    return [name for name, _ in samples[0].settings if len({dict(sample.settings)[name] for sample in samples}) > 1]


def _caption(evaluated: Sequence[Evaluated], has_best: bool) -> str:
    text = "Metrics of the generated images: ↓ lower is better, ↑ higher is better."
    if has_best:
        return f"{text} The best values are bold."
    if len(evaluated) > 1 and not _are_comparable([record for _, _, record in evaluated]):
        return f"{text} The rows are not comparable: their references or numbers of images differ."
    return text


def _are_comparable(records: Sequence[MetricRecord]) -> bool:
    return len({(record.num_samples, record.num_reference, record.config.reference) for record in records}) == 1


def _best(columns: dict[str, tuple[str, str]], records: Sequence[MetricRecord]) -> dict[str, str]:
    """Return the best value of each metric, as shown, where the shown values differ and the records are comparable."""
    best: dict[str, str] = {}
    if not _are_comparable(records):
        return best
    for key, (name, _) in columns.items():
        values = [record.metrics[key] for record in records if key in record.metrics]
        if len(set(map(number_text, values))) > 1:
            best[key] = number_text(max(values) if name in _MORE_IS_BETTER else min(values))
    return best


def _metric(record: MetricRecord, key: str, best: str | None) -> Cell:
    if key not in record.metrics:
        return Cell("–", numeric=True)
    text = number_text(record.metrics[key])
    return Cell(text, numeric=True, best=text == best)


def _counts(record: MetricRecord, metric: str | None = None) -> tuple[str, str]:
    """Return the numbers of generated images and of images of the reference: of one metric, or of all of them."""
    generated = "?" if record.num_samples is None else f"{record.num_samples:,}"
    names = record.metrics if metric is None else [metric]
    counts = dict.fromkeys(record.num_reference_of(name) for name in names)
    return generated, " and ".join("statistics" if count is None else f"{count:,}" for count in counts)
