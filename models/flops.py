"""Floating-point operations per image, counted on the meta device: no weights and no memory are needed.

A multiply-add counts as two operations. Matrix products, attention and convolutions are counted.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from .architectures import AnyConfig, make_model, preset_config
from .autoencoder_classes import CLASSES
from .encoders.registry import find_entry
from .encoders.weights import create_on_meta
from .srdit.config import TOKEN_DROP
from .srdit.model import SRDiT, kept_tokens
from .vae import create_vae_on_meta
from .vae_files import PIXELS


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
    """Return the FLOPs of a VAE's encoder; 0 for pixels. A Hugging Face name may download the config."""
    if name_or_path == PIXELS:
        return 0
    model = create_vae_on_meta(name_or_path)
    pixels = torch.empty(1, 3, resolution, resolution, device="meta")
    has_frames = CLASSES[type(model).__name__].has_frames
    return _count(lambda: model.encode(pixels.unsqueeze(2) if has_frames else pixels))


def model_flops(model: str, input_size: int, in_channels: int, z_dims: tuple[int, ...]) -> int:
    """Return the FLOPs of a model's forward pass. A training step takes three times as many.

    Args:
        model: a preset of any architecture.
        input_size: side of the latents.
        in_channels: channels of the latents.
        z_dims: widths of the encoders that a SiT is aligned with; others have no projectors.
    """
    return forward_flops(preset_config(model, input_size=input_size, in_channels=in_channels, z_dims=z_dims))


def forward_flops(config: AnyConfig, project: bool = True) -> int:
    """Return the FLOPs of the forward pass of a model in training, with or without its projectors."""
    with torch.device("meta"):
        model = make_model(config)
        x, zero = torch.empty(1, *model.state_shape), torch.zeros(1)
        routing: dict[str, Tensor] = {}
        if isinstance(model, SRDiT):
            routing = {"kept": kept_tokens(torch.zeros(1, model.num_tokens), TOKEN_DROP)}
        return _count(lambda: model(x, zero, zero.long(), project=project, **routing))


def _count(run: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    return int(counter.get_total_flops())
