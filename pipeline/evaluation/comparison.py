"""Samples compared with a reference, one detector after the other."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from ...config import EvaluateConfig
from ...config.paths import place
from ...metrics import Detector, Gaussian, frechet_distance, inception_score, kernel_distance, precision_recall
from ..artifacts.images import holds_statistics, open_images
from ..artifacts.metric_files import INCEPTION, DetectorValues, Inputs, MetricRecord
from ..runtime.device import choose_device, float64_device
from .features import DetectorFeatures, extract, load_detector
from .reference_cache import load_reference


def compare(config: EvaluateConfig) -> MetricRecord:
    """Compute the metrics of every detector; ConfigError, SourceError, StoreError, WeightsError as `evaluate.run`."""
    device = choose_device(config.device)
    metrics: dict[str, float] = {}
    warnings: list[str] = []
    detectors: dict[str, DetectorValues] = {}
    counts: list[tuple[int | None, int | None]] = []
    if holds_statistics(Path(config.samples)):
        warnings.append(f"statistics in {config.samples} are not used: metrics of samples are those of their images")
    for name in config.detector:
        samples = open_images(config.samples, config.batch_size, resize=config.resize)
        detector = load_detector(name, config, samples.side, device)
        own = extract(detector, samples, f"{name}: samples", device)
        reference = load_reference(detector, config, samples.side, device, with_statistics=name == INCEPTION)
        metrics |= _compare(name, own, reference, device)
        if own.spatial and not reference.spatial:
            warnings.append(f"{config.reference} holds no mu_s and sigma_s: sFID is not computed")
        warnings += _warnings(detector, own.count, reference.statistics.count)
        detectors[name] = {"name": detector.name, "width": detector.width, "reference": _inputs(config, reference)}
        counts.append((own.count, reference.statistics.count))
    return MetricRecord(metrics, *counts[0], detectors, tuple(warnings), config)


def _inputs(config: EvaluateConfig, reference: DetectorFeatures) -> Inputs:
    """Return what was compared with."""
    return {
        "path": place(config.reference),
        "statistics": "file" if reference.has_own_statistics else "images",
        "statistics_images": reference.statistics.count,
        "images": reference.count,
    }


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


def _warnings(detector: Detector, *counts: int | None) -> Iterable[str]:
    fewest = min(count for count in counts if count is not None)
    if fewest < 2 * detector.width:
        yield (
            f"{fewest:,} images for {detector.width:,} features of {detector.name}: Fréchet distances of so few images "
            "are biased upward; compare them only with distances computed from the same counts"
        )
