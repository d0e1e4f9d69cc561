"""Encodes only the latents of a store, VAE moments, with the same code as `encode`."""

from __future__ import annotations

from ..config import EncodeConfig
from ..stores.layout import latents_group
from . import encode
from .encoding.latents import LatentEncoder
from .encoding.work import with_vae_name

__all__ = ["LatentEncoder", "run"]


def run(config: EncodeConfig) -> encode.EncodeResult:
    """Encode the missing VAE moments, but no features. Raises the same errors as `encode.run`."""
    config = with_vae_name(config)
    return encode.run(config, wanted=(latents_group(config.vae),))
