"""`repa-pipe evaluate`: FID, FDr, MIND and other metrics of images, each as it is published.

Metrics that exist with the same settings, of the same images and the same reference, are not computed again.
Files and names are checked before torch is imported.
"""

from __future__ import annotations

import dataclasses
import glob
import logging
import time
from dataclasses import dataclass
from pathlib import Path

from ..config import EvaluateConfig
from ..errors import ConfigError
from ..models.encoders.detectors import check_detector
from ..stores.files import remove_leftovers
from .artifacts.damaged import read_or_set_aside
from .artifacts.images import open_images, open_reference, read_npz_labels
from .artifacts.metric_files import (
    INCEPTION,
    LPIPS,
    DetectorValues,
    MetricRecord,
    finished_metrics,
    input_digests,
    metrics_file,
    read_metrics_file,
    resolve_samples,
    write_metrics_file,
)
from .runtime.lease import lease

MIN_IMAGES = 4  # the manifold of precision and recall is made of the 3 nearest neighbors of every image
MIN_IMAGES_OF_A_COVARIANCE = 2

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EvaluateResult:
    """Metrics, with the detectors and sample counts that they depend on."""

    metrics: dict[str, float]
    num_samples: int | None
    num_reference: int | None  # of the first Fréchet distance; None when a statistics file does not record it
    detectors: dict[str, DetectorValues]
    warnings: list[str]
    out: str
    reference: str = ""  # what the samples were compared with, as printed
    margins: dict[str, float] = dataclasses.field(default_factory=dict)  # half the widths of the 95% intervals


def run(config: EvaluateConfig) -> EvaluateResult:
    """Compare samples with a reference; the result is also written as JSON, by default next to the samples.

    Raises:
        ConfigError, SourceError, StoreError, WeightsError: the images, the reference or a detector are unusable.
    """
    config = resolve_samples(config)
    out = metrics_file(config)
    record = finished_metrics(config)
    if record is not None:
        logger.info("%s already exists with the same settings; skipping", out)
    else:
        _require_inputs(config)
        with lease(out.parent, out.stem):
            remove_leftovers(out.parent, glob.escape(out.name))
            inputs = input_digests(config)
            record = dataclasses.replace(_evaluate(config), inputs=inputs)
            read_or_set_aside(out, lambda: read_metrics_file(out), "the metrics are computed again")
            write_metrics_file(out, record)
    return EvaluateResult(
        metrics=record.metrics,
        num_samples=record.num_samples,
        num_reference=record.num_reference,
        detectors=record.detectors,
        warnings=list(record.warnings),
        out=str(out),
        reference=record.reference_text(),
        margins=record.margins,
    )


def _require_inputs(config: EvaluateConfig) -> None:
    """Raise the errors of missing or too few images and of unknown encoders."""
    for name in config.detector:
        check_detector(name, config.weights_of(name))
    samples = open_images(config.samples, config.batch_size, resize=config.resize)
    reference = open_reference(config)
    fewest = MIN_IMAGES if reference is not None else MIN_IMAGES_OF_A_COVARIANCE
    for images in (samples, reference):
        if images is not None and images.count < fewest:
            raise ConfigError(
                f"{images.description}: expected at least {fewest} images to compute metrics of, and thousands for "
                f"accurate ones; found {images.count}"
            )
    if LPIPS in config.detector:
        _require_pairs(config)
    others = [name for name in config.detector if name not in (INCEPTION, LPIPS)]
    if reference is None and others:
        raise ConfigError(
            f"{config.reference} holds statistics of Inception's features alone, and {others[0]} needs images: pass a "
            "reference with images"
        )


def _require_pairs(config: EvaluateConfig) -> None:
    """Raise ConfigError if LPIPS has no two images of a class to compare."""
    labels = read_npz_labels(Path(config.samples))
    if len(set(labels.tolist())) == len(labels):
        raise ConfigError(
            f"{config.samples}: {LPIPS} compares images of the same class, and each of the {len(labels):,} images has "
            "a class of its own: generate more images, or leave it out"
        )


def _evaluate(config: EvaluateConfig) -> MetricRecord:
    from .evaluation.comparison import compare

    start = time.monotonic()
    record = compare(config)
    return dataclasses.replace(record, seconds=round(time.monotonic() - start, 1))
