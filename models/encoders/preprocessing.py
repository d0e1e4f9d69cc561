"""From uint8 images to an encoder's input: the value range, normalization and resizing of its published code."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Rgb = tuple[float, float, float]

IMAGENET_MEAN: Rgb = (0.485, 0.456, 0.406)
IMAGENET_STD: Rgb = (0.229, 0.224, 0.225)
CLIP_MEAN: Rgb = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Rgb = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, kw_only=True, slots=True)
class Preprocessing:
    """How an encoder's images are scaled, normalized and resized.

    `resize` says on which side of the normalization the resizing stands: without clamping the two orders differ by
    rounding alone. `antialias` also clamps the resized image to the range of an image, as PIL does; without it the
    values overshoot, as in the published code of REPA's encoders.
    """

    mean: Rgb
    std: Rgb
    resize: Literal["before", "after"] = "after"
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    antialias: bool = False

    def __call__(self, images: Tensor, size: int) -> Tensor:
        """Turn images, uint8 [B, 3, R, R], into an encoder's input, float32 [B, 3, size, size]."""
        pixels = images.float() / 255.0
        mean = torch.tensor(self.mean, device=pixels.device).view(3, 1, 1)
        std = torch.tensor(self.std, device=pixels.device).view(3, 1, 1)
        if self.resize == "before":
            return (self._resized(pixels, size) - mean) / std
        return self._resized((pixels - mean) / std, size)

    def describe(self, resolution: int, size: int) -> str:
        """Return one line that tells all of it, for fingerprints."""
        normalize = f"normalise by mean {list(self.mean)}, std {list(self.std)}"
        steps = ["divide by 255", normalize]
        if size != resolution:
            how = "antialiased, clamped to [0, 1]" if self.antialias else "not antialiased"
            step = f"resize {resolution} to {size} pixels ({self.interpolation}, align_corners=False, {how})"
            steps.insert(1 if self.resize == "before" else 2, step)
        return "; ".join(steps)

    def _resized(self, pixels: Tensor, size: int) -> Tensor:
        if pixels.shape[-1] == size:
            return pixels
        resized = functional.interpolate(
            pixels, size=(size, size), mode=self.interpolation, align_corners=False, antialias=self.antialias
        )
        return resized.clamp(0, 1) if self.antialias else resized
