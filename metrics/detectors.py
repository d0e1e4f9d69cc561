"""Detectors: the networks whose features the metrics compare. Here the one of the published numbers, Inception."""

import hashlib
import pickle
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..errors import ConfigError, WeightsError
from .arrays import full_float32

INCEPTION_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
)
# torch-fidelity and pytorch-fid publish the same file under two names.
INCEPTION_FILES = ("weights-inception-2015-12-05-6726825d.pth", "pt_inception-2015-12-05-6726825d.pth")
SPATIAL_CHANNELS = 7


class Features(NamedTuple):
    """What a detector says of a batch of images, float32 on its device."""

    pooled: Tensor  # [B, D]
    spatial: Tensor | None  # [B, S], for sFID
    probabilities: Tensor | None  # [B, K] softmax, for the inception score


class Detector(Protocol):
    """A network that turns images into features; its name goes beside every number made with it."""

    @property
    def name(self) -> str:
        """What to call it in a table."""

    @property
    def width(self) -> int:
        """D, the width of the pooled features."""

    @property
    def fingerprint(self) -> dict[str, Any]:
        """All that decides the features, as JSON: weights, preprocessing."""

    def features(self, images: Tensor) -> Features:
        """Features of images, uint8 [B, 3, H, W] RGB."""


class InceptionDetector:
    """The Inception network of 2015-12-05 that FID, sFID, IS, precision and recall are published with.

    The network is torch-fidelity's port of the frozen TensorFlow graph that the ADM suite runs, its resize to 299
    pixels included (TensorFlow 1's bilinear, no half-pixel centers, no antialias). Per image: 2,048 pooled features;
    2,023 spatial ones, the first 7 channels of `mixed_6/conv` on their 17x17 grid, channels last as ADM's statistics
    files have them; 1,008 probabilities from the logits without their bias, as ADM computes them.

    `weights` is a path to the published file; None looks for it in torch's hub folder and downloads it.
    Raises WeightsError when torch-fidelity is not installed, when the file cannot be had, or does not fit.
    """

    name = "inception-2015-12-05"
    width = 2048

    def __init__(self, weights: str | Path | None = None, device: torch.device | str = "cpu") -> None:
        path = Path(weights) if weights is not None else _published_weights()
        self._network = _load_network(path).to(device)
        with path.open("rb") as file:
            self.fingerprint: dict[str, Any] = {
                "name": self.name,
                "weights_sha256": hashlib.file_digest(file, "sha256").hexdigest(),
            }
        self._device = torch.device(device)

    @torch.no_grad()
    def features(self, images: Tensor) -> Features:
        """Features of images, uint8 [B, 3, H, W] RGB, any size. Raises ConfigError for anything else."""
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise ConfigError(
                f"images are {images.dtype} {list(images.shape)}, "
                "but detectors take torch.uint8 [images, 3, height, width]"
            )
        seen: list[Tensor] = []
        # mixed_6 of the graph is Mixed_6d here; its branch conv ends in the rectifier, as branch1x1 does.
        hook = self._network.Mixed_6d.branch1x1.register_forward_hook(
            lambda _module, _inputs, output: seen.append(output)
        )
        try:
            with full_float32():
                pooled, logits = self._network(images.to(self._device))
        finally:
            hook.remove()
        spatial = seen[0][:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)
        return Features(pooled, spatial, logits.softmax(1))


def _published_weights() -> Path:
    """The published file in torch's hub folder, downloaded if it is not there."""
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    for name in INCEPTION_FILES:
        if (folder / name).is_file():
            return folder / name
    target = folder / INCEPTION_FILES[0]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(INCEPTION_URL, str(target), hash_prefix="6726825d", progress=False)
    except (OSError, RuntimeError) as error:
        raise WeightsError(
            f"Inception's weights are not at {target}, and could not be downloaded from {INCEPTION_URL} ({error}); "
            "get the file elsewhere and put it there, or give its path"
        ) from None
    return target


def _load_network(path: Path) -> Any:
    """torch-fidelity's module with the weights of the file."""
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError as error:
        raise WeightsError(
            f"the Inception detector needs torch-fidelity ({error}); run: pip install 'repa-pipe[fid]'"
        ) from None
    if not path.is_file():
        raise WeightsError(f"{path}: no such file; get it from {INCEPTION_URL}")
    try:
        # Read here without running what a pickle may hold; the module below reads it with no such care.
        torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"{path}: no weights file ({reason}); get it again from {INCEPTION_URL}") from None
    try:
        return FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(path)
        )
    except (RuntimeError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"{path}: holds another network than Inception of 2015-12-05 ({str(error).splitlines()[0]}); "
            f"get the file from {INCEPTION_URL}"
        ) from None
