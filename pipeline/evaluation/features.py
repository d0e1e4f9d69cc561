"""Features that a detector computes from a set of images, and their statistics."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from ...config import EvaluateConfig
from ...metrics import Detector, Features, FeatureStatistics, Gaussian, InceptionDetector
from ...models.encoders import load_encoder
from ...models.encoders.detectors import DETECTORS, PooledNetwork
from ..artifacts.images import Images
from ..artifacts.metric_files import INCEPTION
from ..runtime.device import float64_device
from ..runtime.progress import progress


class EncoderDetector:
    """An encoder as detector: its class token if it has one, else the mean of its patch tokens."""

    def __init__(self, name: str, weights: str | None, side: int, device: torch.device) -> None:
        self._encoder = load_encoder(name, weights, side, device=device)
        self._device = device
        self.name = name
        self.width = self._encoder.width
        self.library = f"timm {version('timm')}"

    @property
    def rule(self) -> str:
        """How images become features, in one line."""
        pooled = "class token" if self._encoder.has_cls_token else "mean of the patch tokens"
        return f"{self._encoder.fingerprint['preprocessing']}; {pooled}"

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Fingerprint of the encoder, which determines the features."""
        return dict(self._encoder.fingerprint)

    def features(self, images: Tensor) -> Features:
        """Return the features of images uint8 `[B, 3, H, W]`."""
        tokens = self._encoder(images.to(self._device))
        pooled = tokens.patch_tokens.mean(dim=1) if tokens.cls_token is None else tokens.cls_token
        return Features(pooled.float(), None, None)


class NetworkDetector:
    """A network of published distances as detector."""

    def __init__(self, name: str, weights: str | None, device: torch.device) -> None:
        self._network = PooledNetwork(name, weights, device)
        self.name, self.width = name, self._network.width
        self.rule, self.library = self._network.rule, self._network.library
        self.fingerprint = self._network.fingerprint

    def features(self, images: Tensor) -> Features:
        """Return the features of images uint8 `[B, 3, H, W]`."""
        return Features(self._network(images), None, None)


def load_detector(name: str, config: EvaluateConfig, side: int, device: torch.device) -> Detector:
    """Load Inception, a network of published distances, or an encoder; ConfigError or WeightsError if unavailable."""
    if name == INCEPTION:
        return InceptionDetector(config.weights_of(name), device)
    if name in DETECTORS:
        return NetworkDetector(name, config.weights_of(name), device)
    return EncoderDetector(name, config.weights_of(name), side, device)


@dataclass(frozen=True, slots=True)
class DetectorFeatures:
    """Output of a detector for a set of images, on the CPU."""

    statistics: Gaussian
    spatial: Gaussian | None
    features: Tensor | None  # [N, D] float32; None when only statistics are known
    probabilities: Tensor | None  # [N, K] float32
    has_own_statistics: bool = False  # they were read from a file and may be of more images than the features

    @property
    def count(self) -> int | None:
        """Number of images of `features`, None when only statistics are known."""
        return None if self.features is None else len(self.features)


def extract(detector: Detector, images: Images, description: str, device: torch.device) -> DetectorFeatures:
    """Run the detector, which is on `device`, over all images."""
    where = float64_device(device)
    pooled: list[Tensor] = []
    probabilities: list[Tensor] = []
    statistics = FeatureStatistics(detector.width, where)
    spatial: FeatureStatistics | None = None
    with progress(description, images.count, "images") as bar:
        for block in images.blocks:
            found = detector.features(torch.from_numpy(block.copy()).permute(0, 3, 1, 2))
            pooled.append(found.pooled.cpu())
            statistics.update(found.pooled.to(where))
            if found.spatial is not None:
                spatial = spatial or FeatureStatistics(found.spatial.shape[1], where)
                spatial.update(found.spatial.to(where))
            if found.probabilities is not None:
                probabilities.append(found.probabilities.cpu())
            bar.update(len(block))
    return DetectorFeatures(
        _on_cpu(statistics),
        _on_cpu(spatial) if spatial else None,
        torch.cat(pooled),
        torch.cat(probabilities) if probabilities else None,
    )


def _on_cpu(statistics: FeatureStatistics) -> Gaussian:
    found = statistics.gaussian()
    return Gaussian(found.mean.cpu(), found.covariance.cpu(), found.count)
