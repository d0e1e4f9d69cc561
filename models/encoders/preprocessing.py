"""Preprocessing from uint8 images to an encoder's input: value range, normalization and resizing as published."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

Rgb = tuple[float, float, float]

IMAGENET_MEAN: Rgb = (0.485, 0.456, 0.406)
IMAGENET_STD: Rgb = (0.229, 0.224, 0.225)
CLIP_MEAN: Rgb = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Rgb = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, kw_only=True, slots=True)
class Preprocessing:
    """Scaling, normalization and resizing of an encoder's images.

    `resize` is the order: before or after normalization. Without clamping, the two orders differ only by rounding.
    `antialias` also clamps the resized image to the range of an image, as PIL does. Without it, values overshoot, as
    they do in the published code of REPA's encoders.
    """

    mean: Rgb
    std: Rgb
    resize: Literal["before", "after"] = "after"
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    antialias: bool = False

    def __call__(self, images: Tensor, size: int) -> Tensor:
        """Convert images, uint8 [B, 3, R, R], to an encoder's input, float32 [B, 3, size, size]."""
        import torch

        pixels = images.float() / 255.0
        mean = torch.tensor(self.mean, device=pixels.device).view(3, 1, 1)
        std = torch.tensor(self.std, device=pixels.device).view(3, 1, 1)
        if self.resize == "before":
            return (self._resize(pixels, size) - mean) / std
        return self._resize((pixels - mean) / std, size)

    def describe(self, resolution: int, size: int) -> str:
        """Return a complete description in one line. Stored in fingerprints: its wording must not change."""
        normalize = f"normalise by mean {list(self.mean)}, std {list(self.std)}"
        steps = ["divide by 255", normalize]
        if size != resolution:
            how = "antialiased, clamped to [0, 1]" if self.antialias else "not antialiased"
            step = f"resize {resolution} to {size} pixels ({self.interpolation}, align_corners=False, {how})"
            steps.insert(1 if self.resize == "before" else 2, step)
        return "; ".join(steps)

    def _resize(self, pixels: Tensor, size: int) -> Tensor:
        from torch.nn import functional

        if pixels.shape[-1] == size:
            return pixels
        resized = functional.interpolate(
            pixels, size=(size, size), mode=self.interpolation, align_corners=False, antialias=self.antialias
        )
        return resized.clamp(0, 1) if self.antialias else resized
