"""Networks whose features published Fréchet distances are computed from: one vector per image, named with its size.

They are not the encoders of the same architecture: sizes, resizing, pooling and position embeddings differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ...errors import ConfigError
from ..weight_files import WeightsSource, require_weights_file, weights_sha256
from .preprocessing import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD, Rgb
from .registry import check_encoder
from .weights import TimmWeights

if TYPE_CHECKING:
    import torch
    from torch import Tensor

NOT_HERE = ("inception", "lpips")  # detectors that other libraries have
_ANY_SIZE = {"dynamic_img_size": True, "dynamic_img_pad": True}
_DINOV2_OFFSET = 0.1  # that DINOv2 adds to the side of its grid before it interpolates


@dataclass(frozen=True, kw_only=True, slots=True)
class DetectorEntry:
    """A network with its preprocessing, as published.

    Attributes:
        architecture: timm's name of the network and its weights.
        side: side of the network's input in pixels.
        pooling: how one vector comes from the network's tokens or feature map.
        source: where the definition is from.
        mean: subtracted from pixels in [0, 1].
        std: they are then divided by this.
        resize: bicubic and antialiased, of float pixels without clamping, or by Pillow in 8 bits.
        positions: how a vision transformer's position embedding is fitted to the input: by timm at every size, or by
            the interpolation of the DINOv2 repository.
        options: further arguments of `timm.create_model`.
    """

    architecture: str
    side: int
    pooling: Literal["class token", "attention pool", "spatial mean"]
    source: str
    mean: Rgb = IMAGENET_MEAN
    std: Rgb = IMAGENET_STD
    resize: Literal["torch", "Pillow"] = "torch"
    positions: Literal["timm", "DINOv2"] = "timm"
    options: Mapping[str, Any] = field(default_factory=lambda: dict(_ANY_SIZE))

    @property
    def rule(self) -> str:
        """The preprocessing and pooling in one line. Stored with metrics: its wording must not change."""
        how = {"torch": "torch's bicubic, antialiased, not clamped", "Pillow": "Pillow's bicubic, 8 bits"}[self.resize]
        fitted = "; position embedding interpolated as in the DINOv2 repository" if self.positions == "DINOv2" else ""
        return (
            f"resize to {self.side} pixels ({how}); normalize by mean {list(self.mean)}, std {list(self.std)}"
            f"{fitted}; {self.pooling}"
        )


_FD_LOSS = "FD-loss, arXiv 2604.28190"
DETECTORS: dict[str, DetectorEntry] = {
    "convnextv2-b-224": DetectorEntry(
        architecture="convnextv2_base.fcmae_ft_in22k_in1k",
        side=224,
        pooling="spatial mean",
        source=_FD_LOSS,
        options={},
    ),
    "dinov2-l-256": DetectorEntry(
        architecture="vit_large_patch14_dinov2.lvd142m", side=256, pooling="class token", source=_FD_LOSS
    ),
    "mae-l-224": DetectorEntry(
        architecture="vit_large_patch16_224.mae", side=224, pooling="class token", source=_FD_LOSS
    ),
    "siglip2-so400m-224": DetectorEntry(
        architecture="vit_so400m_patch16_siglip_256.v2_webli",
        side=224,
        pooling="attention pool",
        source=_FD_LOSS,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    ),
    "clip-l-256": DetectorEntry(
        architecture="vit_large_patch14_clip_224.openai",
        side=256,
        pooling="class token",
        source=_FD_LOSS,
        mean=CLIP_MEAN,
        std=CLIP_STD,
    ),
    "dinov2-l-224": DetectorEntry(
        architecture="vit_large_patch14_dinov2.lvd142m",
        side=224,
        pooling="class token",
        source="dgm-eval, arXiv 2306.04675",
        resize="Pillow",
        positions="DINOv2",
    ),
}


def check_detector(name: str, weights: str | None) -> None:
    """Raise the errors of a detector or encoder that can be found without torch: an unknown name, a missing file.

    Raises:
        ConfigError: the name is not valid.
        WeightsError: there is no file at `weights`, or the weights come in a package that is not installed.
    """
    if name in NOT_HERE:
        return
    if name in DETECTORS:
        if weights is not None:
            require_weights_file(Path(weights).expanduser())
        return
    try:
        check_encoder(name, weights)
    except ConfigError as error:
        raise ConfigError(f"{error}. Detectors are also {', '.join((*NOT_HERE, *DETECTORS))}") from None


class PooledNetwork:
    """A frozen detector. Call it with images, uint8 [B, 3, H, W], to get features, float32 [B, D], on its device."""

    def __init__(self, name: str, weights: str | Path | None = None, device: str | torch.device = "cpu") -> None:
        """Load the network in float32.

        Raises:
            WeightsError: the weights are not available, cannot be read or do not fit.
        """
        import timm
        import torch

        self._entry = DETECTORS[name]
        self._device = torch.device(device)
        path = None if weights is None else Path(weights).expanduser()
        files = TimmWeights(sources=(WeightsSource(repo=f"timm/{self._entry.architecture}"),))
        model: Any = files.load(name, self._entry.architecture, self._entry.options, path)
        self.fingerprint: dict[str, Any] = {
            "detector": name,
            "architecture": f"timm {self._entry.architecture}",
            "weights_sha256": weights_sha256(model.state_dict()),
            "rule": self._entry.rule,
            "precision": "float32",
        }
        if self._entry.positions == "DINOv2":
            _interpolate_as_dinov2(model, self._entry.side)
        self._model: Any = model.requires_grad_(False).eval().to(self._device)
        self.name = name
        self.width = int(model.num_features)
        self.rule = self._entry.rule
        self.library = f"timm {timm.__version__}"

    def __call__(self, images: Tensor) -> Tensor:
        """Return the features of images of any size."""
        import torch

        pixels = self._pixels(images).to(self._device)
        mean, std = (
            torch.tensor(each, device=self._device).view(3, 1, 1) for each in (self._entry.mean, self._entry.std)
        )
        with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            return self._pool((pixels - mean) / std).float()

    def _pixels(self, images: Tensor) -> Tensor:
        """Return the resized images, float32 in about [0, 1]."""
        from torch.nn import functional

        side = self._entry.side
        if images.shape[-2:] == (side, side):
            return images.to(self._device).float() / 255
        if self._entry.resize == "Pillow":
            return _resized_by_pillow(images, side).float() / 255
        pixels = images.to(self._device).float() / 255
        return functional.interpolate(pixels, size=(side, side), mode="bicubic", align_corners=False, antialias=True)

    def _pool(self, pixels: Tensor) -> Tensor:
        found: Tensor = self._model.forward_features(pixels)
        if self._entry.pooling == "spatial mean":
            return found.mean(dim=(2, 3))
        if self._entry.pooling == "attention pool":
            pooled: Tensor = self._model.pool(found)
            return pooled
        return found[:, 0]


def _resized_by_pillow(images: Tensor, side: int) -> Tensor:
    """Resize images uint8 [B, 3, H, W] as torchvision resizes Pillow's images; the result has 8 bits as well."""
    import numpy as np
    import torch
    from PIL import Image

    found = [
        np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC))
        for image in images.permute(0, 2, 3, 1).cpu().numpy()
    ]
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2)


def _interpolate_as_dinov2(model: Any, side: int) -> None:
    """Fit the position embedding as `interpolate_pos_encoding` of the DINOv2 repository (b8931f7): no antialiasing."""
    import torch
    from torch.nn import functional

    positions: Tensor = model.pos_embed.detach()
    before = round((positions.shape[1] - 1) ** 0.5)
    grid = positions[:, 1:].reshape(1, before, before, -1).permute(0, 3, 1, 2)
    after = side // model.patch_embed.patch_size[0]
    scale = (after + _DINOV2_OFFSET) / before
    fitted = functional.interpolate(grid, scale_factor=(scale, scale), mode="bicubic")
    model.patch_embed.grid_size = (after, after)  # that timm fits the position embedding from
    model.pos_embed = torch.nn.Parameter(torch.cat([positions[:, :1], fitted.flatten(2).transpose(1, 2)], dim=1))
