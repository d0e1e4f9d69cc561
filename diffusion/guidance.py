"""Guidance: the velocity of a model, moved away from a weaker one within an interval of times.

The weaker velocity is that without a label (classifier-free guidance, arXiv 2207.12598), that of a second model
(autoguidance, arXiv 2406.02507), that of a second head (RAEv2's internal guidance, arXiv 2605.18324), or that without
a label and without the middle blocks (SR-DiT's path-drop guidance, arXiv 2512.12386).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError

Velocity = Callable[[Tensor, Tensor], Tensor]  # (x_t [B, ...], scalar t) -> velocity [B, ...]
Model = Callable[[Tensor, Tensor, Tensor], tuple[Any, ...]]  # (x_t, t [B], labels [B]) -> velocity first, as SiT
# (x_t, t [B], labels [B]) -> the velocity and the weaker one, each [B, ...]
BothVelocities = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True, kw_only=True, slots=True)
class GuidedVelocity:
    """A velocity function with guidance within a time interval; create it with `guided`.

    Heun's method evaluates the velocity at the start and at the end of a step. REPA's sampler applies guidance to both
    evaluations or to neither, depending on the start; JiT's considers the time of each. Samplers call `at_step`.
    """

    model: Model
    both: BothVelocities
    labels: Tensor
    scale: float
    low: float
    high: float
    scale_of: Tensor | None = None
    each_evaluation: bool = False

    def __post_init__(self) -> None:
        if self.scale < 1 and not self.each_evaluation:
            raise ConfigError(f"guidance scale is {self.scale}; expected at least 1, which means no guidance")
        if not 0 <= self.low <= self.high <= 1:
            raise ConfigError(f"guidance interval is {self.low} to {self.high}; expected 0 <= low <= high <= 1")

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """Return the velocity at x and the scalar time t."""
        return self.at_step(float(t))(x, t)

    def at_step(self, start: float, t: float | None = None) -> Velocity:
        """Return the velocity function, guided or not, for an evaluation at time `t` of the step from `start`.

        By default the evaluation is that at `start`.
        """
        time = start if t is None or not self.each_evaluation else t
        return self._guided if self.scale != 1 and self._is_inside(time) else self._unguided

    def _is_inside(self, t: float) -> bool:
        if self.each_evaluation:
            return self.low < t and (t < self.high or self.high == 1)
        return self.low <= t <= self.high

    def _unguided(self, x: Tensor, t: Tensor) -> Tensor:
        velocity: Tensor = self.model(x, t.repeat(len(x)), self.labels)[0]
        return velocity

    def _guided(self, x: Tensor, t: Tensor) -> Tensor:
        """Extrapolate from the weaker velocity."""
        strong, weak = (each.double() for each in self.both(x, t.repeat(len(x)), self.labels))
        scale = self.scale if self.scale_of is None else self.scale_of.double()
        return weak + scale * (strong - weak)


def guided(  # noqa: PLR0917 (external code calls it with positional arguments)
    model: Model,
    labels: Tensor,
    null_label: int,
    scale: float = 1.0,
    low: float = 0.0,
    high: float = 1.0,
    scale_of: Tensor | None = None,
    both: BothVelocities | None = None,
    each_evaluation: bool = False,
) -> GuidedVelocity:
    """Return the model's velocity for labels, with guidance for low <= t <= high.

    The guided velocity is `weak + scale * (velocity - weak)`. By default the weak velocity is that of the null label
    (classifier-free guidance).

    Args:
        model: `(x_t, t, labels) -> (velocity, ...)`, as SiT. `functools.partial(model, project=False)` skips the
            projectors.
        labels: [B] int64, one per sample.
        null_label: the label that stands for no class.
        scale: 1 for no guidance, at one forward pass per evaluation. Above 1, evaluations inside the interval run two
            passes in one batch.
        low: end of the guided interval toward the data.
        high: end of the guided interval toward the noise (arXiv 2404.07724 explains why it may be below 1).
        scale_of: scales of the elements of the state, which broadcast against it, instead of `scale` for all; 1 for
            those that follow the label without guidance. `scale` still decides whether there is any guidance.
        both: `(x_t, t, labels) -> (velocity, weak velocity)`, for other weak velocities than that of the null label:
            `with_weak_model`, `with_unconditional`, or a model with two heads.
        each_evaluation: JiT's rules. Each of Heun's evaluations is guided if its own time is inside the interval; the
            ends are outside, but for time 1 if the interval ends there. Scales below 1 guide as well.

    Raises:
        ConfigError: the scale is below 1 (unless `each_evaluation`), or the interval is not within [0, 1].
    """
    return GuidedVelocity(
        model=model,
        both=both or _with_null_label(model, null_label),
        labels=labels,
        scale=scale,
        low=low,
        high=high,
        scale_of=scale_of,
        each_evaluation=each_evaluation,
    )


def _with_null_label(model: Model, null_label: int) -> BothVelocities:
    """Evaluate with labels and null label in one batch."""

    def both(x_t: Tensor, t: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        all_labels = torch.cat([labels, torch.full_like(labels, null_label)])
        velocities: Tensor = model(torch.cat([x_t, x_t]), torch.cat([t, t]), all_labels)[0]
        conditional, unconditional = velocities.chunk(2)
        return conditional, unconditional

    return both


def with_weak_model(model: Model, weak: Model) -> BothVelocities:
    """Return the velocities of a model and of a weaker one for the same labels (autoguidance)."""
    return lambda x_t, t, labels: (model(x_t, t, labels)[0], weak(x_t, t, labels)[0])


def with_unconditional(model: Model, unconditional: Model, null_label: int) -> BothVelocities:
    """Return the velocities of a model for labels, and of a weaker one for the null label (path-drop guidance)."""

    def both(x_t: Tensor, t: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        null = torch.full_like(labels, null_label)
        return model(x_t, t, labels)[0], unconditional(x_t, t, null)[0]

    return both
