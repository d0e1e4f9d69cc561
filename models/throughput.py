"""Measured speeds that `repa-pipe plan` looks up, and estimates from FLOPs for models without a measurement.

Measured in November 2026 on one H100 80 GB with random weights and 256-pixel images. Encoders: fp16 autocast, not
compiled. SiT: bf16, compiled, trained from a store (docs/performance.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from .encoders.registry import find_entry
from .encoders.token_choice import ATTENTION_BLOCKS

RESOLUTION = 256


class Measured(NamedTuple):
    """Images per second, and FLOPs per image, which are recorded because counting them takes a second per model."""

    speed: float
    flops: int


ENCODERS = {
    "dinov2-vit-b": Measured(5401.0, 46_322_454_528),
    "dinov2-vit-l": Measured(1919.0, 162_023_964_672),
    "dinov2-vit-g": Measured(596.0, 598_780_133_376),
    "clip-vit-L": Measured(1823.0, 162_023_964_672),
    "mae-vit-l": Measured(2081.0, 162_118_336_512),
    "jepa-vit-h": Measured(944.0, 333_245_317_120),
}
STEPS = {  # complete training steps; FLOPs of the forward pass alone
    "SiT-B/2": Measured(2249.0, 49_762_009_088),
    "SiT-L/2": Measured(792.0, 165_413_388_288),
    "SiT-XL/2": Measured(513.0, 241_394_155_520),
}
READING = 0.005  # cost of reading the store, as a fraction of a training step whose batch is already on the GPU
VAE_FLOPS_PER_SECOND = 1e14  # assumed: no VAE has been measured

# FLOP/s of matrix products of dense bf16 or fp16 numbers, from NVIDIA's data sheets, by the name that torch reports.
PEAKS = {
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
}


def peak_flops_per_second(device: str, precision: str) -> float | None:
    """Return the peak of a GPU in bf16 or fp16; None for another precision, and for a GPU that is not in the list."""
    return PEAKS.get(device) if precision in {"bf16", "fp16"} else None


def encoder_seconds(name: str, resolution: int) -> tuple[float, str]:
    """Return an encoder's seconds per image on the H100, and how the figure was obtained."""
    if name in ENCODERS and resolution == RESOLUTION:
        return 1 / ENCODERS[name].speed, "measured"
    from .flops import encoder_flops

    return _estimate(encoder_flops(name, resolution), ENCODERS)


def attention_seconds(name: str, resolution: int) -> float:
    """Return the seconds per image of recomputing attention in a step, from stored tokens of an encoder, on the H100.

    They are the fraction of the encoder's time that its last blocks are of all its blocks.
    """
    network = name.partition("@")[0]
    return encoder_seconds(network, resolution)[0] * ATTENTION_BLOCKS / int(find_entry(network).depth or 1)


def vae_seconds(name: str, resolution: int) -> tuple[float, str]:
    """Return a VAE encoder's seconds per image on the H100, estimated from its FLOPs, and how it was estimated."""
    from .flops import vae_flops

    seconds = vae_flops(name, resolution) / VAE_FLOPS_PER_SECOND
    return seconds, f"estimated from FLOPs, assuming {VAE_FLOPS_PER_SECOND / 1e12:.0f} TFLOP/s"


def step_seconds(model: str, input_size: int, channels: int, widths: tuple[int, ...]) -> tuple[float, str]:
    """Return a training step's seconds per image on the H100, reading a store, and how the figure was obtained."""
    if model in STEPS and input_size == RESOLUTION // 8:
        return 1 / STEPS[model].speed, "measured"
    from .flops import model_flops

    return _estimate(model_flops(model, input_size, channels, widths), STEPS)


def _estimate(flops: int, measured: Mapping[str, Measured]) -> tuple[float, str]:
    """Assume the FLOP/s of the measured model whose FLOPs per image are closest, as a ratio."""
    name, nearest = min(measured.items(), key=lambda item: abs(math.log(item[1].flops / flops)))
    return flops / (nearest.flops * nearest.speed), f"estimated from FLOPs at the speed of {name}"
