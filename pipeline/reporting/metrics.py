"""Metrics of the generated images, each with its detector and the numbers of images."""

from __future__ import annotations

from collections.abc import Sequence

from ...config import SampleConfig, flag
from ..artifacts.metric_bases import bases, differences
from ..artifacts.metric_files import FDR6, MetricRecord
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
    "density": "Density",
    "coverage": "Coverage",
    "diversity": "Diversity",
    "mind": "MIND",
    "fdr": "FDr",
    FDR6: "FDr6",
}
FRECHET = {"fid", "sfid", "fd", FDR6}
_GUIDANCE = {"cfg": "CFG", "internal": "internal guidance", "path_drop": "path-drop guidance"}
_MORE_IS_BETTER = {"inception_score", "precision", "recall", "density", "coverage", "diversity"}

NO_BREAK_SPACE = "\u00a0"

Column = tuple[str, str]  # name of the metric, and what its values are based on where that differs
Evaluated = tuple[int, SampleSet, MetricRecord]  # position of the run, its generated images, their metrics


def metrics_table(runs: Sequence[Run], samples: Sequence[Sequence[SampleSet]]) -> Table | None:
    """Return one row per run and sampling settings, or None when nothing has been evaluated.

    `samples` holds the sets of generated images of each run.
    """
    evaluated = _evaluated(samples)
    if not evaluated:
        return None
    columns = _columns([record for _, _, record in evaluated])
    different = _settings_that_differ([sample for _, sample, _ in evaluated])
    best = _best(columns)
    header = [Cell("Run"), *([Cell("Sampling")] if different else []), Cell("Step", numeric=True)]
    for (key, basis), records in columns.items():
        name, detector = records[0].split(key)
        header.append(Cell(metric_title(name), f"{detector}; {basis}" if basis else detector, numeric=True))
    header += [Cell("Images", "generated vs. reference", numeric=True)]
    rows = []
    for i, sample, record in evaluated:
        values = {flag(name): value_text(dict(sample.settings)[name]) for name in different}
        settings = ", ".join(f"{name}{NO_BREAK_SPACE}{value}" for name, value in values.items())
        row = [Cell(runs[i].name, run=i), *([Cell(settings)] if different else [])]
        row += [Cell(f"{sample.step:,}", numeric=True), *(_metric(record, column, columns, best) for column in columns)]
        rows.append((*row, Cell(" vs. ".join(_counts(record)), numeric=True)))
    return Table(_caption(evaluated, columns, bool(best)), tuple(header), tuple(rows))


def _columns(records: Sequence[MetricRecord]) -> dict[Column, list[MetricRecord]]:
    """Return the records with a value in each column: values on different bases are in different columns."""
    columns: dict[Column, list[MetricRecord]] = {}
    for key in dict.fromkeys(key for record in records for key in record.metrics):
        having = [record for record in records if key in record.metrics]
        for record, basis in zip(having, differences(bases(having, key)), strict=True):
            columns.setdefault((key, basis), []).append(record)
    return columns


def lowest_distance(runs: Sequence[Run], samples: Sequence[Sequence[SampleSet]]) -> tuple[str, str] | None:
    """Return title and text of the lowest Fréchet distance; None without distances, or if they are not comparable."""
    evaluated = _evaluated(samples)
    names = [(key, *record.split(key)) for _, _, record in evaluated for key in record.metrics]
    key, name, detector = next((entry for entry in names if entry[1] in FRECHET), ("", "", ""))
    having = [record for _, _, record in evaluated if key in record.metrics]
    if not key or len(set(bases(having, key))) > 1:
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


def _caption(evaluated: Sequence[Evaluated], columns: dict[Column, list[MetricRecord]], has_best: bool) -> str:
    sentences = ["Metrics of the generated images: ↓ lower is better, ↑ higher is better."]
    if has_best:
        sentences.append("The best values are bold.")
    if any(basis for _, basis in columns):
        sentences.append(
            "Values of a metric with other numbers of images, references, rules or libraries are not comparable: they "
            "have columns of their own."
        )
    if any(record.margins for _, _, record in evaluated):
        sentences.append("± is half the width of the 95% interval over the evaluated images.")
    return " ".join(sentences)


def _best(columns: dict[Column, list[MetricRecord]]) -> dict[Column, str]:
    """Return the best value of each column, as shown, where the shown values differ."""
    best: dict[Column, str] = {}
    for (key, basis), records in columns.items():
        values = [record.metrics[key] for record in records]
        if len(set(map(number_text, values))) > 1:
            more_is_better = records[0].split(key)[0] in _MORE_IS_BETTER
            best[key, basis] = number_text(max(values) if more_is_better else min(values))
    return best


def _metric(
    record: MetricRecord, column: Column, columns: dict[Column, list[MetricRecord]], best: dict[Column, str]
) -> Cell:
    key = column[0]
    if not any(each is record for each in columns[column]):
        return Cell("–", numeric=True)
    text = number_text(record.metrics[key])
    margin = f" ± {number_text(record.margins[key])}" if key in record.margins else ""
    return Cell(text + margin, numeric=True, best=text == best.get(column))


def _counts(record: MetricRecord, metric: str | None = None) -> tuple[str, str]:
    """Return the numbers of generated images and of images of the reference: of one metric, or of all of them."""
    generated = "?" if record.num_samples is None else f"{record.num_samples:,}"
    names = record.metrics if metric is None else [metric]
    counts = dict.fromkeys(record.num_reference_of(name) for name in names)
    return generated, " and ".join("statistics" if count is None else f"{count:,}" for count in counts)
