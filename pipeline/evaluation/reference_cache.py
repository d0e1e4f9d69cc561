"""Features of references, computed once and cached.

The cache has one safetensors file per reference in `~/.cache/repa-pipe/references` (or below $REPA_PIPE_CACHE), named
by a digest of the images, the detector with its weights, and the kind of device. Damaged files are recomputed.
"""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...config import EvaluateConfig
from ...errors import ConfigError
from ...metrics import Detector, Gaussian, load_statistics
from ...stores.checksum import crc32c
from ...stores.files import atomic_write, remove_abandoned
from ..artifacts.images import Images, holds_statistics, open_reference
from ..runtime.cache import VARIABLE, cache_file
from .features import DetectorFeatures, extract

logger = logging.getLogger(__name__)

FORMAT = 1


def load_reference(
    detector: Detector, config: EvaluateConfig, side: int, device: torch.device, *, with_statistics: bool = False
) -> DetectorFeatures:
    """Return the features of the reference.

    Args:
        detector: computes the features of images.
        config: which reference, and how its images are read.
        side: side of the samples in pixels.
        device: where the detector is.
        with_statistics: use statistics in the file for Fréchet distances, where it has them, as ADM's evaluator does.
            Its images, if it has any, are used for everything else.

    Raises:
        ConfigError, SourceError, StoreError: the reference is unusable, or its images have another size.
    """
    images = open_reference(config)
    found = None if images is None else _features_of(detector, images, side, device)
    if not (with_statistics and holds_statistics(Path(config.reference))):
        if found is None:
            raise ConfigError(f"{config.reference} has no images, which {detector.name} needs")
        return found
    pooled, spatial = load_statistics(Path(config.reference))
    if found is None:
        return DetectorFeatures(pooled, spatial, None, None, has_own_statistics=True)
    return replace(found, statistics=pooled, spatial=spatial, has_own_statistics=True)


def _features_of(detector: Detector, images: Images, side: int, device: torch.device) -> DetectorFeatures:
    """Return the features of images, from the cache or computed."""
    if images.side != side:
        raise ConfigError(
            f"the samples are {side} x {side}, the reference {images.description} is {images.side} x {images.side}: "
            "compare images of the same size, or pass --resize"
        )
    key = _key(detector, images, device)
    cached = cache_file("references", key, ".safetensors")
    found = _read(cached, key)
    if found is None:
        found = extract(detector, images, f"{detector.name}: reference", device)
        _write(cached, key, found)
    else:
        logger.info("%s: using cached features of %s from %s", detector.name, images.description, cached)
    return found


def _key(detector: Detector, images: Images, device: torch.device) -> dict[str, Any]:
    """Return all values that determine the features."""
    return {
        "format": FORMAT,
        "content": images.content(),
        "count": images.count,
        "side": images.side,
        "detector": detector.fingerprint,
        "device": device.type,
    }


def _write(path: Path, key: dict[str, Any], found: DetectorFeatures) -> None:
    """Write atomically. A failure only costs time later, so it is not an error."""
    from safetensors.torch import save_file

    tensors = {"mean": found.statistics.mean, "covariance": found.statistics.covariance}
    if found.spatial is not None:
        tensors |= {"spatial_mean": found.spatial.mean, "spatial_covariance": found.spatial.covariance}
    if found.features is not None:
        tensors["features"] = found.features
    metadata = {"key": json.dumps(key), "crc32c": json.dumps(_checksums(tensors))}
    try:
        remove_abandoned(path.parent)
        with atomic_write(path) as temporary:
            save_file(tensors, temporary, metadata)
    except OSError as error:
        logger.warning(
            "features of the reference are not cached: %s cannot be written (%s); set $%s to another folder",
            path,
            error,
            VARIABLE,
        )


def _read(path: Path, key: dict[str, Any]) -> DetectorFeatures | None:
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
            # clones are aligned in memory, on which the rounding of float32 products depends: metrics must equal those
            # of features that were just computed
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a mapping)
        if json.loads(metadata["crc32c"]) != _checksums(tensors):
            raise ValueError("checksum mismatch")
        if json.loads(metadata["key"]) != json.loads(json.dumps(key)):
            raise ValueError("it belongs to another reference")
        count = int(key["count"])
        spatial = None
        if "spatial_mean" in tensors:
            spatial = Gaussian(tensors["spatial_mean"], tensors["spatial_covariance"], count)
        statistics = Gaussian(tensors["mean"], tensors["covariance"], count)
        return DetectorFeatures(statistics, spatial, tensors.get("features"), None)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("%s is damaged (%s): recomputing the reference", path, str(error) or type(error).__name__)
        return None


def _checksums(tensors: dict[str, Tensor]) -> dict[str, int]:
    return {name: crc32c(tensor.contiguous().numpy()) for name, tensor in tensors.items()}
