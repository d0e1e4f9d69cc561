"""Interpolation paths from data to noise (SiT, arXiv 2401.08740; REPA, `loss.py`).

x_t = alpha_t * data + sigma_t * noise, with the data at t = 0 and the noise at t = 1. The velocity, which the model
predicts, is the derivative of x_t with respect to t.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..errors import ConfigError
from .times import truncated_logit_normal


class Schedule(NamedTuple):
    """The coefficients of a path and their derivatives with respect to t, each with the shape and dtype of t."""

    alpha_t: Tensor
    sigma_t: Tensor
    d_alpha_t: Tensor
    d_sigma_t: Tensor


@dataclass(frozen=True, slots=True)
class Interpolant:
    """A path: "linear" (alpha_t = 1 - t, sigma_t = t) or "cosine" (alpha_t = cos(pi t / 2), sigma_t = sin(pi t / 2)).

    Raises:
        ConfigError: the path is unknown.
    """

    path: Literal["linear", "cosine"]

    def __post_init__(self) -> None:
        if self.path not in ("linear", "cosine"):
            raise ConfigError(f"unknown path {self.path!r}; expected 'linear' or 'cosine'")

    def __call__(self, t: Tensor) -> Schedule:
        """Return the coefficients at times t of any shape."""
        if self.path == "linear":
            return Schedule(1 - t, t, -torch.ones_like(t), torch.ones_like(t))
        angle = t * (math.pi / 2)
        cosine, sine = angle.cos(), angle.sin()
        return Schedule(cosine, sine, -math.pi / 2 * sine, math.pi / 2 * cosine)

    def interpolate(self, data: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return the model's input x_t and its target, the velocity; both [B, ...] like the data.

        Args:
            data: [B, ...].
            noise: like the data.
            t: times [B], or those of every element, which broadcast against the data.
        """
        alpha_t, sigma_t, d_alpha_t, d_sigma_t = self(t.reshape(-1, *[1] * (data.ndim - 1)) if t.ndim == 1 else t)
        return alpha_t * data + sigma_t * noise, d_alpha_t * data + d_sigma_t * noise

    def score(self, velocity: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Convert a velocity to the score, the gradient of the log-density at x_t (SiT, section 2), for 0 < t <= 1.

        t broadcasts against x_t.
        """
        alpha_t, sigma_t, d_alpha_t, d_sigma_t = self(t)
        return (alpha_t * velocity - d_alpha_t * x_t) / (sigma_t * (d_alpha_t * sigma_t - alpha_t * d_sigma_t))

    def lognormal_time(self, normal: Tensor) -> Tensor:
        """Convert standard normal draws to times at which sigma_t / alpha_t is lognormal (EDM, arXiv 2206.00364)."""
        if self.path == "linear":
            return torch.sigmoid(normal)
        return torch.atan(normal.exp()) * (2 / math.pi)


def draw_times(
    weighting: Literal["uniform", "lognormal", "truncated_lognormal"],
    interpolant: Interpolant,
    count: int,
    generator: torch.Generator,
    *,
    mean: float = 0.0,
    std: float = 1.0,
) -> Tensor:
    """Draw training times [count] float32 on the generator's device: uniform, or with a lognormal noise ratio.

    Mean and standard deviation are those of the logarithm of the ratio, for "lognormal" alone.

    Raises:
        ConfigError: the weighting is unknown, or not defined for the path.
    """
    if weighting == "uniform":
        return torch.rand(count, generator=generator, device=generator.device)
    if weighting == "lognormal":
        normal = torch.randn(count, generator=generator, device=generator.device)
        return interpolant.lognormal_time(normal * std + mean)
    if weighting == "truncated_lognormal" and interpolant.path == "linear":
        return truncated_logit_normal(torch.rand(count, generator=generator, device=generator.device), 0.0, 1.0)
    raise ConfigError(
        f"unknown time weighting {weighting!r} for the {interpolant.path} path; expected 'uniform', 'lognormal' or, on "
        "the linear path, 'truncated_lognormal'"
    )
