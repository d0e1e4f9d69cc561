"""From noise to data: REPA's samplers over any velocity function (REPA, `samplers.py`; SiT, arXiv 2401.08740).

Both take noise x [B, ...], go from t = 1 to t = 0 and return float64. The state is kept in float64; the velocity
function is asked in the dtype that x came in.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ..errors import ConfigError
from .interpolant import Interpolant

Velocity = Callable[[Tensor, Tensor], Tensor]  # (x_t [B, ...], t, a scalar tensor) -> velocity [B, ...]
Model = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Sequence[Tensor]]]  # (x_t, t [B], labels [B]) -> SiT's pair
Noise = Callable[[int, Tensor], Tensor]  # (step from 0, a tensor like the state) -> standard normal draws

LAST_NOISY_TIME = 0.04  # where the published SDE sampler stops adding noise, and takes one plain step to 0


@dataclass(frozen=True, kw_only=True, slots=True)
class GuidedVelocity:
    """A velocity function with classifier-free guidance inside an interval of time; `guided` makes it.

    A step of Heun's method asks twice, at the step's start and at its end, and the published sampler lets the start
    decide for both. So samplers ask for the velocity function of a step, with `of_step`.
    """

    model: Model
    labels: Tensor
    null_label: int
    scale: float
    low: float
    high: float

    def __post_init__(self) -> None:
        if self.scale < 1:
            raise ConfigError(f"guidance scale {self.scale} must be at least 1, which is no guidance")
        if not 0 <= self.low <= self.high <= 1:
            raise ConfigError(f"guidance from {self.low} to {self.high}: needs 0 <= low <= high <= 1")

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """The velocity at x and the scalar time t."""
        return self.of_step(float(t))(x, t)

    def of_step(self, start: float) -> Velocity:
        """The velocity function of the step that starts at this time: guided or not, throughout."""
        inside = self.low <= start <= self.high
        return self._guided if self.scale > 1 and inside else self._conditional

    def _conditional(self, x: Tensor, t: Tensor) -> Tensor:
        return self.model(x, t.repeat(len(x)), self.labels)[0]

    def _guided(self, x: Tensor, t: Tensor) -> Tensor:
        """Both passes in one batch."""
        labels = torch.cat([self.labels, torch.full_like(self.labels, self.null_label)])
        both = self.model(torch.cat([x, x]), t.repeat(len(labels)), labels)[0]
        conditional, unconditional = both.double().chunk(2)
        return unconditional + self.scale * (conditional - unconditional)


def guided(  # noqa: PLR0917 (other programs call it so)
    model: Model,
    labels: Tensor,
    null_label: int,
    scale: float = 1.0,
    low: float = 0.0,
    high: float = 1.0,
) -> GuidedVelocity:
    """The model's velocity for these labels: `null + scale * (label - null)` for low <= t <= high, plain elsewhere.

    Args:
        model: `(x_t, t, labels) -> (velocity, ...)`, as SiT; `functools.partial(model, project=False)` saves the
            projectors' work.
        labels: [B] int64, one for each sample.
        null_label: the label that stands for no class.
        scale: 1 for no guidance, which costs one pass a step; above, two passes inside the interval, in one batch.
        low: end of the guided interval towards the data.
        high: end of the guided interval towards the noise (arXiv 2404.07724 tells why it may be below 1).

    Raises ConfigError for a scale below 1 and for an interval outside [0, 1].
    """
    return GuidedVelocity(model=model, labels=labels, null_label=null_label, scale=scale, low=low, high=high)


@torch.no_grad()
def euler(velocity: Velocity, x: Tensor, num_steps: int, heun: bool = False) -> Tensor:
    """Follow the velocity in `num_steps` equal steps (the probability flow).

    Args:
        velocity: `(x_t, t) -> velocity`, or what `guided` returns.
        x: noise [B, ...].
        num_steps: steps, at least 1.
        heun: second order, Heun's method, at two evaluations a step. The last step, to t = 0, stays Euler's.

    Returns:
        The data [B, ...] float64. Raises ConfigError for less than one step.
    """
    _check_steps(num_steps)
    times = torch.linspace(1, 0, num_steps + 1, dtype=torch.float64)
    state = x.double()
    for step, (start, end) in enumerate(pairwise(times)):
        step_velocity = _of_step(velocity, start)
        slope = _ask(step_velocity, state, start, x.dtype)
        following = state + (end - start) * slope
        if heun and step < num_steps - 1:
            slope = (slope + _ask(step_velocity, following, end, x.dtype)) / 2
            following = state + (end - start) * slope
        state = following
    return state


@torch.no_grad()
def euler_maruyama(velocity: Velocity, x: Tensor, num_steps: int, noise: Noise, interpolant: Interpolant) -> Tensor:
    """Follow the reverse stochastic equation with diffusion 2t, which has the same marginals as the velocity's flow.

    `num_steps` - 1 equal steps lead from t = 1 to 0.04, each adding noise; one without noise leads from there to 0.

    Args:
        velocity: `(x_t, t) -> velocity`, or what `guided` returns.
        x: noise [B, ...].
        num_steps: evaluations of the velocity, at least 1.
        noise: `(step, like) -> Tensor`, standard normal draws of the shape, dtype (float64) and device of `like`, for
            the steps 0 to `num_steps` - 2.
        interpolant: the path that the velocity belongs to: it turns velocity into score.

    Returns:
        The data [B, ...] float64. Raises ConfigError for less than one step.
    """
    _check_steps(num_steps)
    times = torch.linspace(1, LAST_NOISY_TIME, num_steps, dtype=torch.float64)
    times = torch.cat([times, times.new_zeros(1)])
    state = x.double()
    for step, (start, end) in enumerate(pairwise(times)):
        slope = _ask(_of_step(velocity, start), state, start, x.dtype)
        diffusion = 2 * start
        drift = slope - diffusion / 2 * interpolant.score(slope, state, start)
        span = end - start  # below 0
        state = state + span * drift
        if step < num_steps - 1:
            state = state + (diffusion * -span).sqrt() * noise(step, state)
    return state


def _check_steps(num_steps: int) -> None:
    if num_steps < 1:
        raise ConfigError(f"num_steps {num_steps} must be at least 1")


def _of_step(velocity: Velocity, start: Tensor) -> Velocity:
    return velocity.of_step(float(start)) if isinstance(velocity, GuidedVelocity) else velocity


def _ask(velocity: Velocity, state: Tensor, t: Tensor, dtype: torch.dtype) -> Tensor:
    return velocity(state.to(dtype), t.to(state.device, dtype)).double()
