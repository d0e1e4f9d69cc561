"""The latents group: moments of the VAE's posterior, or latents that have none to draw from."""

from __future__ import annotations

import logging

import numpy as np
import torch

from ...config import EncodeConfig
from ...models.pixels import Pixels
from ...models.vae import load_vae
from ...models.vae_files import overflows_in_float16, require_vae_resolution
from ...stores.layout import FIXED, MOMENTS, ArraySpec, GroupSpec, latents_group
from ...stores.store import open_store
from ...stores.upload import store_exists
from ..runtime.device import DTYPES, package_versions
from .activity import ModelClock
from .group_encoder import EncodedBatch

logger = logging.getLogger(__name__)

PACKAGES = ("diffusers", "torch", "pillow")


class LatentEncoder:
    """Encoder of a latents group.

    Its array is `moments`, float32 `[B, 2C, R/f, R/f]`, the unscaled mean and standard deviation; or, of autoencoders
    without a distribution, `latents`, `[B, C, R/f, R/f]`, float32, or uint8 for pixels.
    """

    def __init__(self, config: EncodeConfig, device: torch.device, precision: str) -> None:
        precision = _precision_of(config, precision)
        self._vae = load_vae(config.vae, device=device, dtype=DTYPES[precision])
        require_vae_resolution(config.vae, self._vae.downsampling, config.resolution)
        side = config.resolution // self._vae.downsampling
        is_fixed, channels = self._vae.is_fixed, self._vae.latent_channels
        self._array = ArraySpec(
            name=FIXED if is_fixed else MOMENTS,
            sample_shape=(channels if is_fixed else 2 * channels, side, side),
            dtype="uint8" if isinstance(self._vae, Pixels) else "float32",
        )
        self.spec = GroupSpec(
            path=latents_group(config.vae),
            arrays=(self._array,),
            attributes={
                "vae": config.vae,
                "fingerprint": {
                    **self._vae.fingerprint,
                    "resolution": config.resolution,
                    **package_versions(*PACKAGES),
                },
                "scale": list(self._vae.latents_scale),
                "bias": list(self._vae.latents_bias),
                **({"array": FIXED} if is_fixed else {}),
            },
        )

    def __call__(self, crops: torch.Tensor) -> EncodedBatch:
        """Encode crops, uint8 `[B, 3, R, R]`; WeightsError for moments that are not finite even in float32."""
        if isinstance(self._vae, Pixels):
            return EncodedBatch({self._array.name: crops.cpu().numpy()})
        with ModelClock(crops.device) as clock:
            encoded, in_float32 = self._vae.encode_checked(crops)
        array = encoded.float().cpu().numpy().astype(np.float32, copy=False)
        return EncodedBatch({self._array.name: array}, float32_rows=tuple(in_float32), clocks=(clock,))


def _precision_of(config: EncodeConfig, default: str) -> str:
    """Return the precision of the VAE: float32 instead of float16 if its config says that it overflows.

    `--precision` takes precedence, and so does the precision in which an existing group was encoded.
    """
    if config.precision or default != "fp16" or not overflows_in_float16(config.vae):
        return default
    if store_exists(config.store):
        with open_store(config.store) as store:
            group = latents_group(config.vae)
            if group in store.group_names() and store.group(group).fingerprint.get("precision") == "float16":
                return default
    logger.info("%s is encoded in float32: its config sets force_upcast, as it overflows in float16", config.vae)
    return "fp32"
