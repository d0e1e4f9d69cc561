"""Speeds that a plan looks up: measured on one H100 80 GB, November 2026, random weights, 256 px images.

Encoders: fp16 autocast, not compiled. SiT: bf16, compiled, from a store (docs/performance.md).
"""

from __future__ import annotations

import math

from .flops import encoder_flops, sit_flops, vae_flops

RESOLUTION = 256
ENCODERS = {  # images a second
    "dinov2-vit-b": 5401.0,
    "dinov2-vit-l": 1919.0,
    "dinov2-vit-g": 596.0,
    "clip-vit-L": 1823.0,
    "mae-vit-l": 2081.0,
    "jepa-vit-h": 944.0,
}
STEPS = {"SiT-B/2": 2249.0, "SiT-L/2": 792.0, "SiT-XL/2": 513.0}  # images a second of a whole training step
READING = 0.005  # of a step: what the store costs against a batch that already lies on the device
VAE_FLOPS_A_SECOND = 1e14  # an assumption: no VAE was measured


def encoder_seconds(name: str, resolution: int) -> tuple[float, str]:
    """Seconds an image on the H100, and where the figure comes from."""
    if name in ENCODERS and resolution == RESOLUTION:
        return 1 / ENCODERS[name], "measured"
    flops = encoder_flops(name, resolution)
    counted = {known: encoder_flops(known, RESOLUTION) for known in ENCODERS}
    nearest = min(counted, key=lambda known: abs(math.log(counted[known] / flops)))
    return flops / (counted[nearest] * ENCODERS[nearest]), f"from FLOPs, as fast as {nearest}"


def vae_seconds(name: str, resolution: int) -> tuple[float, str]:
    """Seconds an image on the H100: FLOPs at an assumed speed."""
    return vae_flops(name, resolution) / VAE_FLOPS_A_SECOND, f"from FLOPs, assuming {VAE_FLOPS_A_SECOND / 1e12:.0f} T/s"


def step_seconds(model: str, input_size: int, channels: int, widths: tuple[int, ...]) -> tuple[float, str]:
    """Seconds an image of a training step from a store on the H100."""
    if model in STEPS and input_size == RESOLUTION // 8:
        return 1 / STEPS[model], "measured"
    flops = sit_flops(model, input_size, channels, widths)
    counted = {known: sit_flops(known, RESOLUTION // 8, 4, (768,)) for known in STEPS}
    nearest = min(counted, key=lambda known: abs(math.log(counted[known] / flops)))
    return flops / (counted[nearest] * STEPS[nearest]), f"from FLOPs, as fast as {nearest}"
