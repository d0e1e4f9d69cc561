"""The metrics of `store quality`, accumulated in batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...config import EvaluateConfig
from ...metrics import Detector, FeatureStatistics, frechet_distance
from ...metrics.image_quality import Lpips, psnr, require_torchmetrics, ssim
from ...version import __version__
from ..artifacts.images import Block
from ..artifacts.metric_files import INCEPTION
from ..evaluation.features import load_detector
from ..runtime.device import float64_device
from .quality_options import LPIPS, PSNR, RFID, SSIM, QualityOptions


class Closeness:
    """PSNR, SSIM and LPIPS of pairs of images, and the Fréchet distance between the two sets.

    Args:
        options: which metrics, and the detector.
        side: side of the images in pixels.
        device: where networks run.

    Raises:
        WeightsError: a library or the weights of a network are unavailable.
    """

    def __init__(self, options: QualityOptions, side: int, device: torch.device) -> None:
        self._device = device
        self._metrics: dict[str, Callable[[Tensor, Tensor], Tensor]] = {PSNR: psnr}
        self.libraries = {PSNR: f"repa-pipe {__version__}, data range 255"}
        if SSIM not in options.without:
            self.libraries[SSIM] = f"torchmetrics {require_torchmetrics('SSIM')}, window of 11, data range 255"
            self._metrics[SSIM] = ssim
        if LPIPS not in options.without:
            self.libraries[LPIPS] = f"torchmetrics {require_torchmetrics('LPIPS')}, VGG16"
            self._metrics[LPIPS] = Lpips(device)
        self.values: dict[str, list[float]] = {name: [] for name in self._metrics}  # one per image
        self._detector = None if RFID in options.without else _load_detector(options, side, device)
        self._distance = RFID if options.detector == INCEPTION else f"rfd_{options.detector}"
        self._sets: tuple[FeatureStatistics, ...] = ()
        if self._detector:
            self.libraries[self._distance] = (
                f"repa-pipe {__version__}, {self._detector.name} of {self._detector.library}"
            )
            self._sets = tuple(FeatureStatistics(self._detector.width, float64_device(device)) for _ in range(2))

    @property
    def detector_fingerprint(self) -> dict[str, Any] | None:
        """What the features of the Fréchet distance depend on; None without it."""
        return self._detector.fingerprint if self._detector else None

    def add(self, images: Block, decoded: Block) -> None:
        """Compare images with their reconstructions, both uint8 `[B, R, R, 3]`."""
        pair = [torch.from_numpy(each.copy()).permute(0, 3, 1, 2).to(self._device) for each in (images, decoded)]
        for name, metric in self._metrics.items():
            self.values[name] += metric(*(each.cpu() if name == PSNR else each for each in pair)).tolist()
        for statistics, each in zip(self._sets, pair, strict=False):  # none without a detector
            assert self._detector is not None
            statistics.update(self._detector.features(each).pooled.to(float64_device(self._device)))

    def distances(self) -> dict[str, float]:
        """Return the Fréchet distance by its name, or nothing if it is left out."""
        if not self._sets:
            return {}
        first, second = (each.gaussian() for each in self._sets)
        parts = first.mean, first.covariance, second.mean, second.covariance
        return {self._distance: frechet_distance(*parts)}

    def warnings(self) -> list[str]:
        """Return a warning if there are too few images for a Fréchet distance."""
        count = len(self.values[PSNR])
        if self._detector is None or count >= 2 * self._detector.width:
            return []
        return [
            f"{count:,} images for {self._detector.width:,} features of {self._detector.name}: Fréchet distances of so "
            "few images are biased; compare them only with distances computed from the same images"
        ]


def _load_detector(options: QualityOptions, side: int, device: torch.device) -> Detector:
    """Load the detector as `evaluate` does."""
    name = options.detector
    weights = () if options.detector_weights is None else (f"{name}={options.detector_weights}",)
    config = EvaluateConfig(samples="originals", reference="decoded", detector=(name,), encoder_weights=weights)
    return load_detector(name, config, side, device)
