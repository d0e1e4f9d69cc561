"""Encodes only the features of a store, patch and class tokens, with the same code as `encode`."""

from __future__ import annotations

from ..config import EncodeConfig
from ..errors import ConfigError
from ..stores.layout import features_group
from . import encode
from .encoding.features import FeatureEncoder

__all__ = ["FeatureEncoder", "run"]


def run(config: EncodeConfig) -> encode.EncodeResult:
    """Encode the missing patch and class tokens, but no latents. Raises the same errors as `encode.run`."""
    if not config.encoder:
        raise ConfigError("expected at least one --encoder, found none")
    return encode.run(config, wanted=[features_group(encoder) for encoder in config.encoder])
