"""The path from data to noise that the model learns to walk back (SiT, arXiv 2401.08740; REPA, `loss.py`).

x_t = alpha_t * data + sigma_t * noise, from the data at t = 0 to the noise at t = 1. The velocity is the derivative of
x_t by t, and the model predicts it.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..errors import ConfigError


class Schedule(NamedTuple):
    """The path's coefficients and their derivatives by t, each of the shape and dtype of t."""

    alpha_t: Tensor
    sigma_t: Tensor
    d_alpha_t: Tensor
    d_sigma_t: Tensor


@dataclass(frozen=True, slots=True)
class Interpolant:
    """A path: "linear", alpha_t = 1 - t and sigma_t = t, or "cosine", a quarter turn of the circle.

    Raises ConfigError for another name.
    """

    path: Literal["linear", "cosine"]

    def __post_init__(self) -> None:
        if self.path not in ("linear", "cosine"):
            raise ConfigError(f"path {self.path!r} is neither 'linear' nor 'cosine'")

    def __call__(self, t: Tensor) -> Schedule:
        """The coefficients at time t (any shape)."""
        if self.path == "linear":
            return Schedule(1 - t, t, -torch.ones_like(t), torch.ones_like(t))
        angle = t * (math.pi / 2)
        cosine, sine = angle.cos(), angle.sin()
        return Schedule(cosine, sine, -math.pi / 2 * sine, math.pi / 2 * cosine)

    def interpolate(self, data: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The points x_t at t [B] and their velocities, the model's input and target, each [B, ...] like the data."""
        alpha_t, sigma_t, d_alpha_t, d_sigma_t = self(t.reshape(-1, *[1] * (data.ndim - 1)))
        return alpha_t * data + sigma_t * noise, d_alpha_t * data + d_sigma_t * noise

    def score(self, velocity: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The gradient of the log-density at x_t that belongs to a velocity (SiT, section 2), for 0 < t <= 1.

        t broadcasts against x_t.
        """
        alpha_t, sigma_t, d_alpha_t, d_sigma_t = self(t)
        return (alpha_t * velocity - d_alpha_t * x_t) / (sigma_t * (d_alpha_t * sigma_t - alpha_t * d_sigma_t))

    def lognormal_time(self, normal: Tensor) -> Tensor:
        """Times where sigma_t / alpha_t is lognormal (EDM, arXiv 2206.00364), from standard normal draws."""
        if self.path == "linear":
            return torch.sigmoid(normal)
        return torch.atan(normal.exp()) * (2 / math.pi)


def draw_times(
    weighting: Literal["uniform", "lognormal"],
    interpolant: Interpolant,
    count: int,
    generator: torch.Generator,
) -> Tensor:
    """Training times [count] float32, on the generator's device: uniform, or lognormal in the noise ratio.

    Raises ConfigError for another weighting.
    """
    if weighting == "uniform":
        return torch.rand(count, generator=generator, device=generator.device)
    if weighting == "lognormal":
        return interpolant.lognormal_time(torch.randn(count, generator=generator, device=generator.device))
    raise ConfigError(f"time weighting {weighting!r} is neither 'uniform' nor 'lognormal'")
