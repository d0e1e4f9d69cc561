"""The metrics of the runs' samples, each with its detector and its sample counts."""

from __future__ import annotations

from collections.abc import Sequence

from ...config import SampleConfig
from .runs import Metrics, Run, SampleSet
from .tables import Cell, Table, number_text, value_text

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
_MORE_IS_BETTER = {"inception_score", "precision", "recall"}

Judged = tuple[int, SampleSet, Metrics]


def metrics_table(runs: Sequence[Run], samples: Sequence[Sequence[SampleSet]]) -> Table | None:
    """A row a run and sampling; `samples` holds the sample sets of each run. None when nothing is evaluated yet."""
    judged = _judged(samples)
    if not judged:
        return None
    columns = {name: found.split(name) for _, _, found in judged for name in found.values}
    different = _settings_that_differ([sample for _, sample, _ in judged])
    best = _best(columns, [found for _, _, found in judged])
    header = [Cell("Run"), *([Cell("Sampled with")] if different else []), Cell("Step", numeric=True)]
    header += [Cell(metric_title(name), detector, numeric=True) for name, detector in columns.values()]
    header += [Cell("Samples", "reference", numeric=True)]
    rows = []
    for i, sample, found in judged:
        settings = ", ".join(f"{name.replace('_', ' ')} {value_text(vars(sample.config)[name])}" for name in different)
        row = [Cell(runs[i].name, run=i), *([Cell(settings)] if different else [])]
        row += [Cell(f"{sample.step:,}", numeric=True), *(_metric(found, name, best.get(name)) for name in columns)]
        rows.append((*row, _counts(found)))
    return Table(_caption(judged, bool(best)), tuple(header), tuple(rows))


def distance_fact(runs: Sequence[Run], samples: Sequence[Sequence[SampleSet]]) -> tuple[str, str] | None:
    """The lowest Fréchet distance of all, in words; None where there is none, or where they cannot be compared."""
    judged = _judged(samples)
    names = [(key, *found.split(key)) for _, _, found in judged for key in found.values]
    key, name, detector = next((entry for entry in names if entry[1] in FRECHET), ("", "", ""))
    if not key or not _are_comparable([found for _, _, found in judged]):
        return None
    i, _, best = min((entry for entry in judged if key in entry[2].values), key=lambda entry: entry[2].values[key])
    lowest = "Lowest " if len(judged) > 1 else ""
    counts = _counts(best)
    value = number_text(best.values[key])
    return (
        f"{lowest}{_TITLES[name]}",
        f"{value} by {detector}, {counts.text} samples {counts.small}: {runs[i].name}",
    )


def sampling_text(config: SampleConfig) -> str:
    """`SDE, 250 steps, guidance 1.8 from 0 to 0.7, random labels, seed 0`."""
    solver = config.mode.upper() + (" with Heun's steps" if config.heun else "")
    guidance = "no guidance"
    if config.cfg_scale > 1:
        guidance = f"guidance {config.cfg_scale:g} from {config.guidance_low:g} to {config.guidance_high:g}"
    labels = f"{config.labels} labels" if config.labels.isalpha() else f"labels {config.labels}"
    parts = [solver, f"{config.num_steps} steps", guidance, labels, f"seed {config.global_seed}"]
    parts += [] if config.ema else ["weights not averaged"]
    parts += [f"decoded by {config.vae}"] if config.vae else []
    return ", ".join(parts)


def _judged(samples: Sequence[Sequence[SampleSet]]) -> list[Judged]:
    """Sample sets with metrics; those of the same settings stand together, as they are what one compares."""
    judged = [(i, one, one.metrics) for i, sets in enumerate(samples) for one in sets if one.metrics]
    order = list(dict.fromkeys(sample.settings for _, sample, _ in judged))
    return sorted(judged, key=lambda entry: order.index(entry[1].settings))


def _settings_that_differ(samples: Sequence[SampleSet]) -> list[str]:
    return [name for name, _ in samples[0].settings if len({vars(one.config)[name] for one in samples}) > 1]


def metric_title(name: str) -> str:
    """`FID ↓`, `Precision ↑`."""
    return f"{_TITLES.get(name, name)} {'↑' if name in _MORE_IS_BETTER else '↓'}"


def _caption(judged: Sequence[Judged], has_best: bool) -> str:
    text = "Metrics of the samples: ↓ less is better, ↑ more is better."
    if has_best:
        return f"{text} The best is bold."
    if len(judged) > 1 and not _are_comparable([found for _, _, found in judged]):
        return f"{text} The counts or references differ, so these figures cannot be compared with each other."
    return text


def _are_comparable(metrics: Sequence[Metrics]) -> bool:
    return len({(found.num_samples, found.num_reference, found.reference) for found in metrics}) == 1


def _best(columns: dict[str, tuple[str, str]], metrics: Sequence[Metrics]) -> dict[str, float]:
    """The best value of each metric, where values differ and all were counted alike."""
    best: dict[str, float] = {}
    if not _are_comparable(metrics):
        return best
    for key, (name, _) in columns.items():
        values = {found.values[key] for found in metrics if key in found.values}
        if len(values) > 1:
            best[key] = max(values) if name in _MORE_IS_BETTER else min(values)
    return best


def _metric(found: Metrics, name: str, best: float | None) -> Cell:
    if name not in found.values:
        return Cell("–", numeric=True)
    return Cell(number_text(found.values[name]), numeric=True, best=found.values[name] == best)


def _counts(found: Metrics) -> Cell:
    samples = "?" if found.num_samples is None else f"{found.num_samples:,}"
    reference = "statistics" if found.num_reference is None else f"{found.num_reference:,}"
    return Cell(samples, f"against {reference}", numeric=True)
