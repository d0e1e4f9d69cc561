"""Frozen image encoders: images in, patch tokens on SiT's token grid out.

`encoder` runs an encoder, `registry` lists the known ones, and the other modules define their architectures,
preprocessing and weights. The pipeline and `models.flops` may import this package. From the rest of the project it
imports only `models.weight_files`, `models.precision` and `errors`; names are imported lazily, so that importing the
package does not load torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .encoder import Encoder, EncoderInfo, Tokens, describe_encoder, encoder_names, load_encoder

__all__ = ["Encoder", "EncoderInfo", "Tokens", "describe_encoder", "encoder_names", "load_encoder"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from . import encoder

        return getattr(encoder, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
