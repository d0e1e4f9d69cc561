"""Model FLOPs utilization (MFU): the FLOPs of a model's training steps, compared with the peak of the GPUs."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch

from ...config import TrainConfig
from ...models.diffusion_model import ModelConfig

if TYPE_CHECKING:
    from ...models.architectures import AnyConfig

STEP_PER_FORWARD = 3  # the backward pass takes twice as many FLOPs as the forward pass


def mfu_per_image_rate(config: TrainConfig, model: ModelConfig, device: torch.device, num_devices: int) -> float | None:
    """Return the factor from images per second to MFU; None where the peak of the device is unknown.

    The FLOPs are those of the model without projectors, and without the recomputation of `--checkpoint-blocks`.
    """
    if device.type != "cuda":
        return None
    from ...models.throughput import peak_flops_per_second

    peak = peak_flops_per_second(torch.cuda.get_device_name(device), str(config.mixed_precision))
    if peak is None:
        return None
    from ...models.flops import forward_flops

    return STEP_PER_FORWARD * forward_flops(cast("AnyConfig", model), project=False) / (peak * num_devices)
