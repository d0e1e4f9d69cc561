"""How close images are to others, pair by pair: PSNR, SSIM and LPIPS, with which autoencoders are compared.

PSNR is computed here. SSIM and LPIPS are those of torchmetrics (the extra `quality`), an optional library that is
imported only when one of them is requested. All functions take uint8 images [B, 3, H, W].
"""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError, WeightsError, first_line
from .arrays import full_float32

DATA_RANGE = 255.0
SSIM_WINDOW = 11  # pixels: the Gaussian window of the definition
VGG16_URL = "https://download.pytorch.org/models/vgg16-397923af.pth"


def psnr(images: Tensor, others: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio of each pair in dB, float64 [B]; infinity for equal images.

    10 log10(255^2 / mean squared error) over the pixels and channels of one image, with a data range of 255.

    Raises:
        ConfigError: the images have another dtype, or two shapes.
    """
    _check(images, others)
    error = (images.double() - others.double()).square().mean((1, 2, 3))
    return 10 * torch.log10(DATA_RANGE**2 / error)


def ssim(images: Tensor, others: Tensor) -> Tensor:
    """Return the structural similarity of each pair, float32 [B]; 1 for equal images.

    `structural_similarity_index_measure` of torchmetrics with its defaults, those of Wang et al. (2004): a Gaussian
    window of 11 pixels with sigma 1.5, k1 = 0.01, k2 = 0.03, the mean over pixels and RGB channels; data range 255.
    Unlike Wang et al., torchmetrics includes the windows at the border of the image, which it mirrors.

    Raises:
        ConfigError: the images have another dtype, two shapes, or are smaller than the window.
        WeightsError: torchmetrics is not installed.
    """
    _check(images, others)
    if min(images.shape[2:]) < SSIM_WINDOW:
        raise ConfigError(f"SSIM needs images of at least {SSIM_WINDOW} pixels, found {list(images.shape[2:])}")
    require_torchmetrics("SSIM")
    from torchmetrics.functional.image import structural_similarity_index_measure

    with full_float32():
        values = structural_similarity_index_measure(
            others.float(), images.float(), data_range=DATA_RANGE, reduction="none"
        )
    assert isinstance(values, Tensor)
    return values


class Lpips:
    """Learned perceptual image patch similarity (Zhang et al. 2018, version 0.1) on VGG16: a distance.

    The network of torchmetrics: its package has the weights of the linear layers, and torchvision the VGG16, which is
    loaded from torch's hub folder and downloaded if needed.

    Args:
        device: where the network runs.

    Raises:
        WeightsError: torchmetrics is not installed, or the weights are unavailable.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        require_torchmetrics("LPIPS")
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        try:
            found: Any = LearnedPerceptualImagePatchSimilarity(net_type="vgg", normalize=True)
        except (OSError, RuntimeError) as error:
            path = Path(torch.hub.get_dir()) / "checkpoints" / VGG16_URL.rsplit("/", 1)[1]
            raise WeightsError(
                f"the VGG16 weights of LPIPS are not at {path} and could not be loaded from {VGG16_URL} "
                f"({first_line(error)}). Download the file on another machine and copy it there, or leave LPIPS out"
            ) from None
        self._network = found.net.to(device)
        self._device = torch.device(device)

    @torch.no_grad()
    def __call__(self, images: Tensor, others: Tensor) -> Tensor:
        """Return the distance of each pair, float32 [B]; 0 for equal images.

        Raises:
            ConfigError: the images have another dtype, or two shapes.
        """
        _check(images, others)
        pair = [each.to(self._device).float() / 255 for each in (images, others)]
        with full_float32():
            values: Tensor = self._network(*pair, normalize=True)
        return values.flatten()


def require_torchmetrics(metric: str) -> str:
    """Return the version of torchmetrics; raise WeightsError, naming the metric, if it is not installed."""
    try:
        import torchmetrics  # noqa: F401
    except ImportError as error:
        raise WeightsError(
            f"{metric} requires torchmetrics ({error}). Run pip install 'repa-pipe[quality]', or leave {metric} out"
        ) from None
    return version("torchmetrics")


def _check(images: Tensor, others: Tensor) -> None:
    for each in (images, others):
        if each.dtype != torch.uint8 or each.ndim != 4 or each.shape[1] != 3 or each.shape != images.shape:
            raise ConfigError(
                f"images are {images.dtype} {list(images.shape)} and {others.dtype} {list(others.shape)}; expected two "
                "of the same shape, torch.uint8 [images, 3, height, width]"
            )
