"""`repa-pipe evaluate`: images against a reference, with the detectors that are named, to ADM's definitions."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import EvaluateConfig
from ..errors import ConfigError
from ..metrics import (
    Detector,
    Features,
    FeatureStatistics,
    Gaussian,
    InceptionDetector,
    frechet_distance,
    inception_score,
    kernel_distance,
    load_statistics,
    precision_recall,
)
from ..models.encoders import load_encoder
from ..stores.files import write_json
from .device import choose_device
from .images import Images, open_images, read_npz_header
from .progress import progress

INCEPTION = "inception"


@dataclass(frozen=True, slots=True)
class EvaluateResult:
    """Numbers with all that they depend on."""

    metrics: dict[str, float]
    num_samples: int | None
    num_reference: int | None  # None when a statistics file does not say
    detectors: dict[str, dict[str, Any]]
    warnings: list[str]
    out: str


class EncoderDetector:
    """A registered encoder as detector: its class token where it has one, else the mean of its patch tokens."""

    def __init__(self, name: str, weights: str | None, side: int, device: torch.device) -> None:
        self._encoder = load_encoder(name, weights, side, device=device)
        self._device = device
        self.name = name
        self.width = self._encoder.width

    def features(self, images: Tensor) -> Features:
        """Features of images uint8 `[B, 3, H, W]`."""
        tokens = self._encoder(images.to(self._device))
        pooled = tokens.patch_tokens.mean(dim=1) if tokens.cls_token is None else tokens.cls_token
        return Features(pooled.float(), None, None)


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
        detector = _load_detector(name, config, samples.side, device)
        own = _extract(detector, samples, f"{name}: samples")
        reference = _reference(detector, config, samples.side)
        metrics |= _compare(name, own, reference)
        warnings += _warn(detector, own.count, reference.count)
        detectors[name] = {"name": detector.name, "width": detector.width}
        counts = own.count, reference.count
    out = config.out or str(Path(config.samples).with_suffix(".metrics.json"))
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


def _load_detector(name: str, config: EvaluateConfig, side: int, device: torch.device) -> Detector:
    if name == INCEPTION:
        return InceptionDetector(config.weights_of(name), device)
    return EncoderDetector(name, config.weights_of(name), side, device)


@dataclass(frozen=True, slots=True)
class _Extracted:
    """What a detector says of a set of images."""

    statistics: Gaussian
    spatial: Gaussian | None
    features: Tensor | None  # [N, D]; None when only statistics are known
    probabilities: Tensor | None
    count: int | None


def _extract(detector: Detector, images: Images, description: str) -> _Extracted:
    pooled: list[Tensor] = []
    probabilities: list[Tensor] = []
    statistics = FeatureStatistics(detector.width)
    spatial: FeatureStatistics | None = None
    with progress(description, images.count, "images") as bar:
        for block in images.blocks:
            found = detector.features(torch.from_numpy(block.copy()).permute(0, 3, 1, 2))
            pooled.append(found.pooled.cpu())
            statistics.update(pooled[-1])
            if found.spatial is not None:
                spatial = spatial or FeatureStatistics(found.spatial.shape[1])
                spatial.update(found.spatial.cpu())
            if found.probabilities is not None:
                probabilities.append(found.probabilities.cpu())
            bar.update(len(block))
    return _Extracted(
        statistics.gaussian(),
        spatial.gaussian() if spatial else None,
        torch.cat(pooled),
        torch.cat(probabilities) if probabilities else None,
        images.count,
    )


def _reference(detector: Detector, config: EvaluateConfig, side: int) -> _Extracted:
    path = Path(config.reference)
    if path.suffix == ".npz" and path.exists() and read_npz_header(path) is None:
        pooled, spatial = load_statistics(path)
        return _Extracted(pooled, spatial, None, None, pooled.count)
    images = open_images(config.reference, config.batch_size, config.source)
    if images.side != side:
        raise ConfigError(
            f"the samples are {side} x {side}, the reference {images.description} is {images.side} x {images.side}: "
            "compare images of one size"
        )
    return _extract(detector, images, f"{detector.name}: reference")


def _compare(name: str, own: _Extracted, reference: _Extracted) -> dict[str, float]:
    is_inception = name == INCEPTION
    suffix = "" if is_inception else f"_{name}"
    metrics = {"fid" if is_inception else f"fd{suffix}": _frechet(own.statistics, reference.statistics)}
    if own.spatial and reference.spatial:
        metrics["sfid"] = _frechet(own.spatial, reference.spatial)
    if own.probabilities is not None:
        metrics["inception_score"] = inception_score(own.probabilities)
    if own.features is not None and reference.features is not None:
        metrics[f"kid{suffix}" if is_inception else f"kd{suffix}"] = kernel_distance(reference.features, own.features)
        precision, recall = precision_recall(reference.features, own.features)
        metrics |= {f"precision{suffix}": precision, f"recall{suffix}": recall}
    return {key: float(value) for key, value in metrics.items()}


def _frechet(a: Gaussian, b: Gaussian) -> float:
    return frechet_distance(a.mean, a.covariance, b.mean, b.covariance)


def _warn(detector: Detector, *counts: int | None) -> Iterable[str]:
    fewest = min(count for count in counts if count is not None)
    if fewest < 2 * detector.width:
        yield (
            f"{fewest:,} images against {detector.width:,} features of {detector.name}: Fréchet distances from so few "
            "are biased upwards; compare them only with others of the same counts"
        )
