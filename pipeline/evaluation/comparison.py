"""Samples compared with a reference, one detector after the other."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...config import EvaluateConfig
from ...config.paths import place
from ...metrics import (
    VALIDATION_FD,
    Detector,
    Gaussian,
    fdr6,
    frechet_distance,
    inception_score,
    influence,
    kernel_distance,
    manifold_metrics,
    mind,
    relative_distances,
)
from ...metrics.fdr import IMAGE_SIZE
from ..artifacts.images import Images, holds_statistics, open_images, read_npz_labels
from ..artifacts.metric_files import FDR6, INCEPTION, LPIPS, DetectorValues, Inputs, MetricRecord
from ..runtime.device import choose_device, float64_device
from .diversity import LpipsDiversity
from .features import DetectorFeatures, extract, load_detector
from .reference_cache import load_reference


@dataclass(frozen=True, slots=True)
class _Found:
    """Metrics of one detector, half the widths of their intervals, and the terms of the Fréchet distance."""

    metrics: dict[str, float]
    margins: dict[str, float]
    distance: float
    terms: Tensor | None  # [M] float32


def compare(config: EvaluateConfig) -> MetricRecord:
    """Compute the metrics of every detector; ConfigError, SourceError, StoreError, WeightsError as `evaluate.run`."""
    device = choose_device(config.device)
    found: dict[str, _Found] = {}
    warnings: list[str] = []
    detectors: dict[str, DetectorValues] = {}
    counts: list[tuple[int | None, int | None]] = []
    side = 0
    diversity = LpipsDiversity.load(device) if LPIPS in config.detector else None
    if holds_statistics(Path(config.samples)):
        warnings.append(f"statistics in {config.samples} are not used: metrics of samples are those of their images")
    for name in config.detector:
        samples = open_images(config.samples, config.batch_size, resize=config.resize)
        side = samples.side
        if name == LPIPS and diversity:
            found[name] = _diversity(diversity, samples, config)
            detectors[name] = {"name": name, "rule": diversity.rule, "library": diversity.library}
            continue
        detector = load_detector(name, config, side, device)
        own = extract(detector, samples, f"{name}: samples", device)
        reference = load_reference(detector, config, side, device, with_statistics=name == INCEPTION)
        found[name] = _compare(name, own, reference, device, intervals=config.intervals)
        if own.spatial and not reference.spatial:
            warnings.append(f"{config.reference} holds no mu_s and sigma_s: sFID is not computed")
        warnings += _warnings(detector, own.count, reference.statistics.count)
        detectors[name] = _values(detector, _inputs(config, reference))
        counts.append((own.count, reference.statistics.count))
    relative, more = _relative_distances(found, side)
    metrics = {key: value for each in (*found.values(), relative) for key, value in each.metrics.items()}
    margins = {key: value for each in (*found.values(), relative) for key, value in each.margins.items()}
    num_samples, num_reference = counts[0] if counts else (samples.count, None)
    return MetricRecord(metrics, num_samples, num_reference, detectors, (*warnings, *more), config, margins=margins)


def _diversity(diversity: LpipsDiversity, samples: Images, config: EvaluateConfig) -> _Found:
    distances = diversity.distances(samples, read_npz_labels(Path(config.samples)), config.batch_size)
    name = f"diversity_{LPIPS}"
    margins = {name: influence.margin(distances)} if config.intervals else {}
    return _Found({name: distances.double().mean().item()}, margins, 0.0, None)


def _values(detector: Detector, inputs: Inputs) -> DetectorValues:
    values: DetectorValues = {
        "name": detector.name,
        "width": detector.width,
        "rule": detector.rule,
        "library": detector.library,
        "reference": inputs,
    }
    weights = detector.fingerprint.get("weights_sha256")
    return {**values, "weights": weights} if weights else values


def _inputs(config: EvaluateConfig, reference: DetectorFeatures) -> Inputs:
    """Return what was compared with."""
    return {
        "path": place(config.reference),
        "statistics": "file" if reference.has_own_statistics else "images",
        "statistics_images": reference.statistics.count,
        "images": reference.count,
    }


def _compare(
    name: str, own: DetectorFeatures, reference: DetectorFeatures, device: torch.device, *, intervals: bool
) -> _Found:
    is_inception = name == INCEPTION
    suffix = "" if is_inception else f"_{name}"
    where = float64_device(device)
    distance, terms = _frechet(own.statistics, reference.statistics, where), None
    metrics = {"fid" if is_inception else f"fd{suffix}": distance}
    margins: dict[str, float] = {}
    if intervals and own.features is not None:
        terms = influence.frechet_terms(
            own.features.to(where), _moved(own.statistics, where), _moved(reference.statistics, where)
        ).cpu()
        margins |= {key: influence.margin(terms) for key in metrics}
    if own.spatial and reference.spatial:
        metrics["sfid"] = _frechet(own.spatial, reference.spatial, where)
    if own.probabilities is not None:
        metrics["inception_score"] = inception_score(own.probabilities)
        if intervals:
            margins["inception_score"] = influence.margin(influence.inception_terms(own.probabilities))
    if own.features is not None and reference.features is not None:
        features = reference.features.to(where), own.features.to(where)
        kernel, sliced = f"kid{suffix}" if is_inception else f"kd{suffix}", f"mind_{name}"
        metrics |= {kernel: kernel_distance(*features), sliced: mind(*features)}
        if intervals:
            margins[kernel] = influence.margin(influence.kernel_terms(*features))
            margins[sliced] = influence.margin(influence.mind_terms(*features))
        values, widths = _manifold_metrics(*features)
        metrics |= {f"{key}{suffix}": value for key, value in values.items()}
        margins |= {f"{key}{suffix}": value for key, value in widths.items() if intervals}
    return _Found({key: float(value) for key, value in metrics.items()}, margins, distance, terms)


def _manifold_metrics(reference: Tensor, samples: Tensor) -> tuple[dict[str, float], dict[str, float]]:
    """Return precision, recall, density and coverage, and half the widths of their intervals.

    Recall and coverage are fractions of the reference, so their intervals are over its images.
    """
    (precision, recall), both = manifold_metrics(reference, samples)
    values = {"precision": precision, "recall": recall}
    margins = {
        "precision": influence.margin_of_fraction(precision, len(samples)),
        "recall": influence.margin_of_fraction(recall, len(reference)),
    }
    if both is not None:
        values |= {"density": both.density, "coverage": both.coverage}
        margins["density"] = influence.margin(both.densities)
        margins["coverage"] = influence.margin_of_fraction(both.coverage, len(reference))
    return values, margins


def _relative_distances(found: dict[str, _Found], side: int) -> tuple[_Found, list[str]]:
    """Return FDr of the detectors that define it and FDr6, if one of them besides Inception is there; and warnings."""
    none = _Found({}, {}, 0.0, None)
    known = [name for name in found if name in VALIDATION_FD]
    if not set(known) - {INCEPTION}:
        return none, []
    if side != IMAGE_SIZE:
        return none, [f"FDr is not computed: it is defined for images of {IMAGE_SIZE} pixels, found {side}"]
    distances = {name: found[name].distance for name in known}
    metrics = {f"fdr_{name}": value for name, value in relative_distances(distances).items()}
    terms = {name: each / VALIDATION_FD[name] for name in known if (each := found[name].terms) is not None}
    margins = {f"fdr_{name}": influence.margin(each) for name, each in terms.items()}
    mean = fdr6(distances)
    if mean is not None:
        metrics[FDR6] = mean
        if terms:
            margins[FDR6] = influence.margin(torch.stack(list(terms.values())).mean(0))
    warning = (
        "FDr divides by distances between ImageNet's validation and training images: compare it with published values "
        "only for 50,000 images against the training images, and Inception's only against ADM's statistics"
    )
    return _Found(metrics, margins, 0.0, None), [warning]


def _frechet(a: Gaussian, b: Gaussian, where: torch.device) -> float:
    return frechet_distance(*(part.to(where) for one in (a, b) for part in (one.mean, one.covariance)))


def _moved(statistics: Gaussian, where: torch.device) -> Gaussian:
    return Gaussian(statistics.mean.to(where), statistics.covariance.to(where), statistics.count)


def _warnings(detector: Detector, *counts: int | None) -> Iterable[str]:
    fewest = min(count for count in counts if count is not None)
    if fewest < 2 * detector.width:
        yield (
            f"{fewest:,} images for {detector.width:,} features of {detector.name}: Fréchet distances of so few images "
            "are biased upward; compare them only with distances computed from the same counts"
        )
