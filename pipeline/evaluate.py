"""`repa-pipe evaluate`: images against a reference, with the detectors that are named, to ADM's definitions."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..config import EvaluateConfig, read_config
from ..metrics import Detector, Gaussian, frechet_distance, inception_score, kernel_distance, precision_recall
from ..stores.files import write_json
from .artifacts.images import open_images
from .evaluation.features import INCEPTION, DetectorFeatures, extract, load_detector
from .evaluation.reference_cache import load_reference
from .runtime.device import choose_device, float64_device


@dataclass(frozen=True, slots=True)
class EvaluateResult:
    """Numbers with all that they depend on."""

    metrics: dict[str, float]
    num_samples: int | None
    num_reference: int | None  # None when a statistics file does not say
    detectors: dict[str, dict[str, Any]]
    warnings: list[str]
    out: str


def run(config: EvaluateConfig) -> EvaluateResult:
    """Compare samples with a reference; the result is also written as JSON beside the samples.

    Raises ConfigError, SourceError, StoreError, WeightsError for what cannot work.
    """
    start = time.monotonic()
    device = choose_device(config.device)
    metrics: dict[str, float] = {}
    warnings: list[str] = []
    detectors: dict[str, dict[str, Any]] = {}
    counts: tuple[int | None, int | None] = (None, None)
    for name in config.detector:
        samples = open_images(config.samples, config.batch_size)
        detector = load_detector(name, config, samples.side, device)
        own = extract(detector, samples, f"{name}: samples", device)
        reference = load_reference(detector, config, samples.side, device)
        metrics |= _compare(name, own, reference, device)
        warnings += _warn(detector, own.count, reference.count)
        detectors[name] = {"name": detector.name, "width": detector.width}
        counts = own.count, reference.count
    out = str(default_out(config))
    result = EvaluateResult(metrics, counts[0], counts[1], detectors, warnings, out)
    write_json(
        Path(out),
        {
            "metrics": metrics,
            "num_samples": result.num_samples,
            "num_reference": result.num_reference,
            "detectors": detectors,
            "warnings": warnings,
            "config": config.as_json(),
            "seconds": round(time.monotonic() - start, 1),
        },
    )
    return result


def finished(config: EvaluateConfig) -> dict[str, Any] | None:
    """What an earlier evaluation of these samples, with the same settings, has written, if it is there."""
    path, samples = default_out(config), Path(config.samples)
    if not (path.exists() and samples.exists()) or path.stat().st_mtime_ns < samples.stat().st_mtime_ns:
        return None
    there = read_config(path)
    return there if _shape(there.get("config", {})) == _shape(config.as_json()) else None


def _shape(values: dict[str, Any]) -> dict[str, Any]:
    harmless = {item.name for item in dataclasses.fields(EvaluateConfig) if item.metadata["harmless"]}
    return {name: value for name, value in values.items() if name not in harmless}


def default_out(config: EvaluateConfig) -> Path:
    """The JSON that is written: beside the samples where no other is named."""
    return Path(config.out) if config.out else Path(config.samples).with_suffix(".metrics.json")


def _compare(name: str, own: DetectorFeatures, reference: DetectorFeatures, device: torch.device) -> dict[str, float]:
    is_inception = name == INCEPTION
    suffix = "" if is_inception else f"_{name}"
    where = float64_device(device)
    metrics = {"fid" if is_inception else f"fd{suffix}": _frechet(own.statistics, reference.statistics, where)}
    if own.spatial and reference.spatial:
        metrics["sfid"] = _frechet(own.spatial, reference.spatial, where)
    if own.probabilities is not None:
        metrics["inception_score"] = inception_score(own.probabilities)
    if own.features is not None and reference.features is not None:
        features = reference.features.to(where), own.features.to(where)
        metrics[f"kid{suffix}" if is_inception else f"kd{suffix}"] = kernel_distance(*features)
        precision, recall = precision_recall(*features)
        metrics |= {f"precision{suffix}": precision, f"recall{suffix}": recall}
    return {key: float(value) for key, value in metrics.items()}


def _frechet(a: Gaussian, b: Gaussian, where: torch.device) -> float:
    return frechet_distance(*(part.to(where) for one in (a, b) for part in (one.mean, one.covariance)))


def _warn(detector: Detector, *counts: int | None) -> Iterable[str]:
    fewest = min(count for count in counts if count is not None)
    if fewest < 2 * detector.width:
        yield (
            f"{fewest:,} images against {detector.width:,} features of {detector.name}: Fréchet distances from so few "
            "are biased upwards; compare them only with others of the same counts"
        )
