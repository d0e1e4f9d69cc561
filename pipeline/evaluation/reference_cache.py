"""References: what a detector says of them is computed once and kept.

One safetensors file a reference in `~/.cache/repa-pipe/references` (or below $REPA_PIPE_CACHE), named after a digest
of the images' content, the detector with its weights, and the kind of device. A file that is damaged is computed anew.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...config import EvaluateConfig
from ...errors import ConfigError
from ...metrics import Detector, Gaussian, load_statistics
from ...stores.checksum import crc32c
from ...stores.files import atomic_write
from ..artifacts.images import Images, open_images, read_npz_header
from ..runtime.cache import VARIABLE, cache_folder
from ..runtime.progress import say
from .features import DetectorFeatures, extract

FORMAT = 1


def load_reference(detector: Detector, config: EvaluateConfig, side: int, device: torch.device) -> DetectorFeatures:
    """Statistics from a file of such, or from images: those of the cache where it has them."""
    path = Path(config.reference)
    if path.suffix == ".npz" and path.exists() and read_npz_header(path) is None:
        pooled, spatial = load_statistics(path)
        return DetectorFeatures(pooled, spatial, None, None, pooled.count)
    images = open_images(config.reference, config.batch_size, config.source)
    if images.side != side:
        raise ConfigError(
            f"the samples are {side} x {side}, the reference {images.description} is {images.side} x {images.side}: "
            "compare images of one size"
        )
    key = _key(detector, images, device)
    cached = cache_folder("references") / f"{_digest(key)}.safetensors"
    found = _read(cached, key)
    if found is None:
        found = extract(detector, images, f"{detector.name}: reference", device)
        _write(cached, key, found)
    else:
        say(f"{detector.name}: features of {images.description} are those of {cached}")
    return found


def _key(detector: Detector, images: Images, device: torch.device) -> dict[str, Any]:
    """All that decides the features."""
    return {
        "format": FORMAT,
        "content": images.content(),
        "count": images.count,
        "side": images.side,
        "detector": detector.fingerprint,
        "device": device.type,
    }


def _digest(key: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]


def _write(path: Path, key: dict[str, Any], found: DetectorFeatures) -> None:
    """Write whole or not at all; that it cannot be written costs time later, so it is said and no error."""
    from safetensors.torch import save_file

    tensors = {"mean": found.statistics.mean, "covariance": found.statistics.covariance}
    if found.spatial is not None:
        tensors |= {"spatial_mean": found.spatial.mean, "spatial_covariance": found.spatial.covariance}
    if found.features is not None:
        tensors["features"] = found.features
    metadata = {"key": json.dumps(key), "crc32c": json.dumps(_checksums(tensors))}
    try:
        with atomic_write(path) as temporary:
            save_file(tensors, temporary, metadata)
    except OSError as error:
        say(f"the reference's features are not kept: {path} cannot be written ({error}); ${VARIABLE} names a folder")


def _read(path: Path, key: dict[str, Any]) -> DetectorFeatures | None:
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
            # copies lie aligned in memory: the last bits of products in float32 depend on it, and are then those of
            # features that were just computed
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (no mapping)
        if json.loads(metadata["crc32c"]) != _checksums(tensors):
            raise ValueError("its checksums are others")
        if json.loads(metadata["key"]) != json.loads(json.dumps(key)):
            raise ValueError("it belongs to another reference")
        count = int(key["count"])
        spatial = None
        if "spatial_mean" in tensors:
            spatial = Gaussian(tensors["spatial_mean"], tensors["spatial_covariance"], count)
        statistics = Gaussian(tensors["mean"], tensors["covariance"], count)
        return DetectorFeatures(statistics, spatial, tensors.get("features"), None, count)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        say(f"{path} is damaged ({str(error) or type(error).__name__}): the reference is computed anew")
        return None


def _checksums(tensors: dict[str, Tensor]) -> dict[str, int]:
    return {name: crc32c(tensor.contiguous().numpy()) for name, tensor in tensors.items()}
