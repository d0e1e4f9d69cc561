"""Loads the models of an encode run."""

from __future__ import annotations

import torch

from ...config import EncodeConfig
from ...stores.layout import features_group, latents_group
from ..runtime.imports import quick_imports
from .features import FeatureEncoder
from .group_encoder import GroupEncoder, WithFlips
from .latents import LatentEncoder


def load_group_encoders(
    config: EncodeConfig, groups: tuple[str, ...], device: torch.device, precision: str
) -> list[GroupEncoder]:
    """Load the models of `groups` on `device`: the VAE first, then encoders in the order of `config.encoder`."""
    encoders: list[GroupEncoder] = []
    with quick_imports():
        if latents_group(config.vae) in groups:
            encoders.append(LatentEncoder(config, device, precision))
        encoders += [
            FeatureEncoder(config, name, device, precision) for name in config.encoder if features_group(name) in groups
        ]
    return [WithFlips(encoder) for encoder in encoders] if config.flip else encoders
