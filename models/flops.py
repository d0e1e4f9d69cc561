"""Floating-point operations of one image, counted on networks without memory: no weights are needed.

Two operations for each multiplication and addition of matrix products, attention and convolutions.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from .encoders.registry import find_entry
from .encoders.weights import create_on_meta
from .sit.model import SIT_PRESETS, SiT
from .vae import create_vae_on_meta


def encoder_flops(name: str, resolution: int) -> int:
    """Of an encoder's forward pass up to its last block or the stage taken; ConfigError for an unknown name."""
    entry = find_entry(name.partition("@")[0])
    model: Any = create_on_meta(entry.architecture, entry.options)
    size = entry.input_size(resolution)
    if hasattr(model, "set_input_size"):
        model.set_input_size(img_size=(size, size))
    index = entry.depth - 1 if entry.depth is not None else entry.stage
    pixels = torch.empty(1, 3, size, size, device="meta")
    return _count(
        lambda: model.eval().forward_intermediates(
            pixels, indices=[index], norm=entry.final_norm, stop_early=True, intermediates_only=True
        )
    )


def vae_flops(name_or_path: str | Path, resolution: int) -> int:
    """Of a VAE's encoder; a hub name may download its config."""
    model = create_vae_on_meta(name_or_path)
    return _count(lambda: model.encode(torch.empty(1, 3, resolution, resolution, device="meta")))


def sit_flops(model: str, input_size: int, in_channels: int, z_dims: tuple[int, ...]) -> int:
    """Of a SiT's forward pass; a training step takes three times as many."""
    with torch.device("meta"):
        sit = SiT(SIT_PRESETS[model](input_size=input_size, in_channels=in_channels, z_dims=z_dims))
        x, zero = torch.empty(1, in_channels, input_size, input_size), torch.zeros(1)
        return _count(lambda: sit(x, zero, zero.long()))


def _count(run: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    return int(counter.get_total_flops())
