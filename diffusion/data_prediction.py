"""Models that predict the data instead of the velocity, and guide themselves (RAEv2, arXiv 2605.18324).

Paths are linear: x_t = (1 - t) data + t noise.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ConfigError

# (x_t, t [B], labels [B]) -> the data and the base head's data, each [B, ...]
DataModel = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def velocity_from_data(x_t: Tensor, data: Tensor, t: Tensor, t_eps: float) -> Tensor:
    """Convert data to the velocity, `(x_t - data) / max(t, t_eps)`.

    Args:
        x_t: [B, ...].
        data: predicted or true, like x_t.
        t: times [B].
        t_eps: smallest divisor; the published one is 0.05.
    """
    return (x_t - data) / t.clamp(min=t_eps).reshape(-1, *[1] * (x_t.ndim - 1))


@dataclass(frozen=True, kw_only=True, slots=True)
class Guidance:
    """A scale and the closed interval of times in which it applies.

    Raises:
        ConfigError: the interval is not within [0, 1].
    """

    scale: float = 1.0  # 1 or less for no guidance
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high <= 1:
            raise ConfigError(f"guidance interval is {self.low} to {self.high}; expected 0 <= low <= high <= 1")

    def applies_at(self, t: float) -> bool:
        """Return whether t is in the interval."""
        return self.low <= t <= self.high


@dataclass(frozen=True, kw_only=True, slots=True)
class InternalGuidance:
    """The data that a model with a base head predicts, with internal and classifier-free guidance.

    Both act on the data: internal guidance is `base + scale (data - base)`. With classifier-free guidance, it is
    applied to the prediction with the labels and to that without, which may have a scale of its own.
    """

    internal: Guidance
    classifier_free: Guidance
    null_scale: float | None = None  # of internal guidance without labels; None for that with labels

    def __call__(self, model: DataModel, x: Tensor, t: Tensor, labels: Tensor, null_label: int) -> Tensor:
        """Return the guided data [B, ...] at x [B, ...] and the scalar time t."""
        time, scale = float(t), self.internal.scale
        null_scale = scale if self.null_scale is None else self.null_scale
        times = t.expand(len(x))
        conditional = self._steered(model(x, times, labels), scale, time)
        if self.classifier_free.scale <= 1 or not self.classifier_free.applies_at(time):
            return conditional
        null = torch.full_like(labels, null_label)
        unconditional = self._steered(model(x, times, null), null_scale, time)
        return unconditional + self.classifier_free.scale * (conditional - unconditional)

    def _steered(self, predicted: tuple[Tensor, Tensor], scale: float, time: float) -> Tensor:
        data, base = predicted
        is_on = self.internal.scale > 1 or (self.null_scale is not None and self.null_scale != 1)
        return base + scale * (data - base) if is_on and self.internal.applies_at(time) else data
