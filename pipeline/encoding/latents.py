"""What a VAE makes of a shard's crops: the moments of its posterior."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ...config import EncodeConfig
from ...models.vae import load_vae
from ...stores.layout import ArraySpec, GroupSpec, latents_group
from ..runtime.device import DTYPES, versions

PACKAGES = ("diffusers", "torch", "pillow")


class LatentEncoder:
    """Crops uint8 `[B, 3, R, R]` to `moments` float32 `[B, 2C, R/f, R/f]`: mean and std, unscaled."""

    def __init__(self, config: EncodeConfig, device: torch.device, precision: str) -> None:
        self._vae = load_vae(config.vae, device=device, dtype=DTYPES[precision])
        side = config.resolution // self._vae.downsampling
        moments = ArraySpec(name="moments", sample_shape=(2 * self._vae.latent_channels, side, side), dtype="float32")
        self.spec = GroupSpec(
            path=latents_group(config.vae),
            arrays=(moments,),
            attributes={
                "vae": config.vae,
                "fingerprint": {**self._vae.fingerprint, "resolution": config.resolution, **versions(*PACKAGES)},
                "scale": list(self._vae.latents_scale),
                "bias": list(self._vae.latents_bias),
            },
        )

    def __call__(self, crops: torch.Tensor) -> dict[str, npt.NDArray[Any]]:
        """Encode one batch."""
        return {"moments": self._vae.encode(crops).float().cpu().numpy().astype(np.float32, copy=False)}
