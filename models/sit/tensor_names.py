"""The names of a SiT's tensors: those that published programs and earlier versions gave them, and the current ones.

Current names are REPA's and, for convolutional projectors and class tokens, iREPA's and REG's. Imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

# Parts of names that wrappers of a module add: data parallelism, torch.compile, FSDP, activation checkpointing.
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
_OTHER_NAMES = (
    (re.compile(r"(projectors\.\d+)\.projection_layer\.(\d+\..+)"), r"\1.\2"),  # iREPA's MLP is REPA's
    (re.compile(r"(projectors\.\d+)\.conv\.(.+)"), r"\1.projection_layer.\2"),  # repa-pipe 0.1
)
_DECODER_BLOCK = re.compile(r"decoder_blocks\.(\d+)\.(.+)")
_LINEAR_PROJECTOR = re.compile(r"projectors\.\d+\.projection_layer\.weight")


def current_names(state_dict: Mapping[str, Tensor], encoder_depth: int | None = None) -> dict[str, Tensor]:
    """Return the tensors under their current names.

    The weights of a linear projector (iREPA's `linear`) become those of a 1x1 convolution, which is the same function.

    Args:
        state_dict: tensors by name.
        encoder_depth: the number of `blocks` in files that name the later ones `decoder_blocks`; None to keep these
            names.
    """
    renamed = {}
    for name, value in state_dict.items():
        current = _current_name(name, encoder_depth)
        is_linear = _LINEAR_PROJECTOR.fullmatch(current) and value.ndim == 2
        renamed[current] = value[:, :, None, None] if is_linear else value
    return renamed


def without_wrappers(name: str) -> str:
    """`module.blocks.0._orig_mod.attn.qkv.weight` → `blocks.0.attn.qkv.weight`."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _current_name(name: str, encoder_depth: int | None) -> str:
    name = without_wrappers(name)
    for pattern, replacement in _OTHER_NAMES:
        name = pattern.sub(replacement, name)
    later = _DECODER_BLOCK.fullmatch(name)
    if later is None or encoder_depth is None:
        return name
    return f"blocks.{int(later[1]) + encoder_depth}.{later[2]}"
