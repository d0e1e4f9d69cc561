"""Frozen image encoders: images in, patch tokens on SiT's token grid out.

`encoder.py` runs an encoder, `registry.py` names the known ones, the other files are what their entries are made of.
Anything above the libraries may import this package; it imports nothing but `errors` and the rest of `models`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .encoder import Encoder, EncoderInfo, Tokens, describe_encoder, encoder_names, load_encoder

__all__ = ["Encoder", "EncoderInfo", "Tokens", "describe_encoder", "encoder_names", "load_encoder"]


def __getattr__(name: str) -> Any:  # lazy: importing the package does not import torch
    if name in __all__:
        from . import encoder

        return getattr(encoder, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
