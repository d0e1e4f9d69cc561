"""Detectors, the networks whose features the metrics compare, and the Inception network behind published numbers."""

import hashlib
import pickle
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..errors import ConfigError, WeightsError, first_line
from .arrays import full_float32

INCEPTION_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
)
# torch-fidelity and pytorch-fid publish the same file under two names.
INCEPTION_FILES = ("weights-inception-2015-12-05-6726825d.pth", "pt_inception-2015-12-05-6726825d.pth")
SPATIAL_CHANNELS = 7


class Features(NamedTuple):
    """A detector's output for a batch of images, float32 on its device."""

    pooled: Tensor  # [B, D]
    spatial: Tensor | None  # [B, S], for sFID
    probabilities: Tensor | None  # [B, K] softmax, for the inception score


class Detector(Protocol):
    """A network that maps images to features; metrics are reported together with its name."""

    @property
    def name(self) -> str:
        """Name in tables."""

    @property
    def width(self) -> int:
        """Width D of the pooled features."""

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Everything that the features depend on (weights, preprocessing), as JSON values."""

    @property
    def rule(self) -> str:
        """How images are resized, normalized and pooled, in one line."""

    @property
    def library(self) -> str:
        """Name and version of the library that the network is from."""

    def features(self, images: Tensor) -> Features:
        """Return the features of images, uint8 [B, 3, H, W] RGB."""


class InceptionDetector:
    """The Inception network of 2015-12-05, with which FID, sFID, IS, precision and recall are published.

    The network is torch-fidelity's port of the frozen TensorFlow graph that the ADM suite runs, including the resize to
    299 pixels (TensorFlow 1's bilinear, without half-pixel centers or antialiasing). It computes, per image:

    - 2,048 pooled features;
    - 2,023 spatial features: the first 7 channels of `mixed_6/conv` on their 17x17 grid, channels last as in ADM's
      statistics files;
    - 1,008 probabilities from the logits without bias, as in ADM.

    Args:
        weights: the published file; None uses the copy in torch's hub folder and downloads it if needed.
        device: where the network runs.

    Raises:
        WeightsError: torch-fidelity is not installed, or the file is unavailable or does not fit.
    """

    name = "inception-2015-12-05"
    width = 2048
    rule = "resize to 299 pixels (TensorFlow 1's bilinear, not antialiased); scale to [-1, 1]; spatial mean"

    def __init__(self, weights: str | Path | None = None, device: torch.device | str = "cpu") -> None:
        path = Path(weights) if weights is not None else _find_weights()
        self._network = _load_network(path).to(device)
        with path.open("rb") as file:
            self.fingerprint: dict[str, Any] = {
                "name": self.name,
                "weights_sha256": hashlib.file_digest(file, "sha256").hexdigest(),
            }
        self.library = f"torch-fidelity {version('torch-fidelity')}"
        self._device = torch.device(device)

    @torch.no_grad()
    def features(self, images: Tensor) -> Features:
        """Return the features of images, uint8 [B, 3, H, W] RGB of any size.

        Raises:
            ConfigError: the images have another dtype or shape.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise ConfigError(
                f"images are {images.dtype} {list(images.shape)}; "
                "detectors expect torch.uint8 [images, 3, height, width]"
            )
        captured: list[Tensor] = []
        # The graph's mixed_6 is Mixed_6d here. Its branch conv includes the ReLU, as branch1x1 does.
        hook = self._network.Mixed_6d.branch1x1.register_forward_hook(
            lambda _module, _inputs, output: captured.append(output)
        )
        try:
            with full_float32():
                pooled, logits = self._network(images.to(self._device))
        finally:
            hook.remove()
        spatial = captured[0][:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)
        return Features(pooled, spatial, logits.softmax(1))


def _find_weights() -> Path:
    """Return the published file in torch's hub folder; download it if needed."""
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
            f"the Inception weights are not at {target} and could not be downloaded from {INCEPTION_URL} ({error}). "
            "Download the file on another machine and copy it there, or pass its path"
        ) from None
    return target


def _load_network(path: Path) -> Any:
    """Load torch-fidelity's module with the weights of a file."""
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError as error:
        raise WeightsError(
            f"the Inception detector requires torch-fidelity ({error}). Run pip install 'repa-pipe[fid]'"
        ) from None
    if not path.is_file():
        raise WeightsError(f"{path} does not exist. Download it from {INCEPTION_URL}")
    try:
        # Verify that the pickle holds no code: the module below loads it without this check.
        torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise WeightsError(
            f"{path} is not a weights file ({first_line(error)}). Download it again from {INCEPTION_URL}"
        ) from None
    try:
        return FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(path)
        )
    except (RuntimeError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"{path} holds another network: expected Inception of 2015-12-05 ({first_line(error)}). "
            f"Download the file from {INCEPTION_URL}"
        ) from None
