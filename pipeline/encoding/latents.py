"""The latents group: moments of the VAE's posterior."""

from __future__ import annotations

import numpy as np
import torch

from ...config import EncodeConfig
from ...models.vae import load_vae
from ...stores.layout import ArraySpec, GroupSpec, latents_group
from ..runtime.device import DTYPES, package_versions
from .group_encoder import EncodedBatch

PACKAGES = ("diffusers", "torch", "pillow")


class LatentEncoder:
    """Encoder of a latents group: `moments`, float32 `[B, 2C, R/f, R/f]`, the unscaled mean and standard deviation."""

    def __init__(self, config: EncodeConfig, device: torch.device, precision: str) -> None:
        self._vae = load_vae(config.vae, device=device, dtype=DTYPES[precision])
        side = config.resolution // self._vae.downsampling
        moments = ArraySpec(name="moments", sample_shape=(2 * self._vae.latent_channels, side, side), dtype="float32")
        self.spec = GroupSpec(
            path=latents_group(config.vae),
            arrays=(moments,),
            attributes={
                "vae": config.vae,
                "fingerprint": {
                    **self._vae.fingerprint,
                    "resolution": config.resolution,
                    **package_versions(*PACKAGES),
                },
                "scale": list(self._vae.latents_scale),
                "bias": list(self._vae.latents_bias),
            },
        )

    def __call__(self, crops: torch.Tensor) -> EncodedBatch:
        """Encode crops, uint8 `[B, 3, R, R]`."""
        moments = self._vae.encode(crops).float().cpu().numpy()
        return EncodedBatch({"moments": moments.astype(np.float32, copy=False)})
