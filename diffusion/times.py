"""Times as programs after REPA draw and step them: logit-normal, and shifted for latents of many dimensions.

Times run from 0 at the data to 1 at the noise.
"""

import math

import torch
from torch import Tensor


def shifted(t: Tensor, shift: float) -> Tensor:
    """Move times t of any shape toward the noise, for a shift above 1 (arXiv 2403.03206, equation 23).

    A shift below 1 moves them toward the data.
    """
    return shift * t / (1 + (shift - 1) * t)


def logit_normal(normal: Tensor, mean: float, std: float) -> Tensor:
    """Convert standard normal draws of any shape to times whose logit is normal."""
    return torch.sigmoid(normal * std + mean)


def truncated_logit_normal(uniform: Tensor, mean: float, std: float, last: float = 0.999) -> Tensor:
    """Convert uniform draws of any shape to times in [0, last] whose logit is normal, truncated there (RAE)."""
    highest = torch.special.ndtr(torch.tensor((math.log(last / (1 - last)) - mean) / std, dtype=torch.float64))
    probability = uniform.double() * highest.to(uniform.device)
    return torch.sigmoid(mean + std * torch.special.ndtri(probability)).clamp(0, last).to(uniform.dtype)


def falling_grid(points: int, last: float, shift: float = 1.0) -> Tensor:
    """Return the times of a sampler, [points] float32: equal steps from 1 to `last`, then shifted.

    In float32, as published programs compute them: with some shifts the first time is slightly above 1, where an
    interval of guidance that ends at 1 does not apply.
    """
    return shifted(1 - torch.linspace(0, 1 - last, points), shift)
