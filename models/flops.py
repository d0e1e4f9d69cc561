"""Floating-point operations per image, counted on the meta device: no weights and no memory are needed.

A multiply-add counts as two operations. Matrix products, attention and convolutions are counted.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from .encoders.registry import find_entry
from .encoders.weights import create_on_meta
from .sit import SIT_PRESETS, SiTConfig, make_sit
from .vae import create_vae_on_meta


def encoder_flops(name: str, resolution: int) -> int:
    """Return the FLOPs of an encoder's forward pass, up to its last block or to the feature map that it returns.

    Raises:
        ConfigError: the name is unknown.
    """
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
    """Return the FLOPs of a VAE's encoder. A Hugging Face name may download the config."""
    model = create_vae_on_meta(name_or_path)
    return _count(lambda: model.encode(torch.empty(1, 3, resolution, resolution, device="meta")))


def sit_flops(model: str, input_size: int, in_channels: int, z_dims: tuple[int, ...]) -> int:
    """Return the FLOPs of a SiT's forward pass. A training step takes three times as many."""
    return forward_flops(SIT_PRESETS[model](input_size=input_size, in_channels=in_channels, z_dims=z_dims))


def forward_flops(config: SiTConfig, project: bool = True) -> int:
    """Return the FLOPs of the forward pass of a SiT, with or without its projectors."""
    with torch.device("meta"):
        sit = make_sit(config)
        x, zero = torch.empty(1, *sit.state_shape), torch.zeros(1)
        return _count(lambda: sit(x, zero, zero.long(), project=project))


def _count(run: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    return int(counter.get_total_flops())
