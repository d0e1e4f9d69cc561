"""REPA's samplers, from noise to data, for any velocity function (REPA, `samplers.py`; SiT, arXiv 2401.08740).

Both integrate noise [B, ...] from t = 1 to t = 0 and return float64. The state is kept in float64; the velocity
function is called in the dtype of the noise.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from ..errors import ConfigError
from .guidance import GuidedVelocity, Velocity, guided
from .interpolant import Interpolant

__all__ = ["Noise", "Velocity", "euler", "euler_maruyama", "guided", "sde_times"]

Noise = Callable[[int, Tensor], Tensor]  # (step from 0, a tensor like the state) -> standard normal draws

LAST_NOISY_TIME = 0.04  # the published SDE sampler adds no noise after this time and takes one deterministic step to 0


@torch.no_grad()
def euler(velocity: Velocity, x: Tensor, num_steps: int, heun: bool = False, times: Tensor | None = None) -> Tensor:
    """Integrate the velocity (the probability flow ODE) in `num_steps` equal steps, or along the given times.

    Args:
        velocity: `(x_t, t) -> velocity`, or the result of `guided`.
        x: noise [B, ...].
        num_steps: number of steps, at least 1.
        heun: use Heun's second-order method, with two evaluations per step. The last step, to t = 0, remains Euler's.
        times: falling times [points], from 1 on, instead of those of equal steps; `num_steps` is then not used.

    Returns:
        The data [B, ...] float64.

    Raises:
        ConfigError: `num_steps` is below 1.
    """
    _check_steps(num_steps)
    times = torch.linspace(1, 0, num_steps + 1, dtype=torch.float64) if times is None else times.double().cpu()
    given = times.to(x.device, x.dtype)  # all at once: a copy to a GPU in every step would wait for the steps before
    state = x.double()
    for step, (start, end) in enumerate(pairwise(times)):
        slope = _evaluate(_at_step(velocity, start, start), state, given[step])
        next_state = state + (end - start) * slope
        if heun and step < len(times) - 2:
            slope = (slope + _evaluate(_at_step(velocity, start, end), next_state, given[step + 1])) / 2
            next_state = state + (end - start) * slope
        state = next_state
    return state


@torch.no_grad()
def euler_maruyama(  # noqa: PLR0917 (external code calls it with positional arguments)
    velocity: Velocity,
    x: Tensor,
    num_steps: int,
    noise: Noise,
    interpolant: Interpolant,
    times: Tensor | None = None,
) -> Tensor:
    """Integrate the reverse SDE with diffusion coefficient 2t, which has the same marginals as the velocity's flow.

    Every step but the last adds noise. By default, `num_steps` - 1 equal steps go from t = 1 to 0.04 (`sde_times`).

    Args:
        velocity: `(x_t, t) -> velocity`, or the result of `guided`.
        x: noise [B, ...].
        num_steps: number of velocity evaluations, at least 1.
        noise: `(step, like) -> Tensor`, standard normal draws with the shape, dtype (float64) and device of `like`,
            called for steps 0 to `num_steps` - 2.
        interpolant: the path that the velocity belongs to; it converts velocity to score.
        times: falling times [points], from 1 to 0, instead of `sde_times`; `num_steps` is then not used.

    Returns:
        The data [B, ...] float64.

    Raises:
        ConfigError: `num_steps` is below 1.
    """
    _check_steps(num_steps)
    times = sde_times(num_steps) if times is None else times.double().cpu()
    given = times.to(x.device, x.dtype)  # all at once, as in `euler`
    state = x.double()
    for step, (start, end) in enumerate(pairwise(times)):
        slope = _evaluate(_at_step(velocity, start, start), state, given[step])
        diffusion = 2 * start
        drift = slope - diffusion / 2 * interpolant.score(slope, state, start)
        span = end - start  # negative
        state = state + span * drift
        if step < len(times) - 2:
            state = state + (diffusion * -span).sqrt() * noise(step, state)
    return state


def sde_times(num_steps: int) -> Tensor:
    """Return the published times of the SDE sampler, [num_steps + 1] float64: equal steps from 1 to 0.04, then 0."""
    times = torch.linspace(1, LAST_NOISY_TIME, num_steps, dtype=torch.float64)
    return torch.cat([times, times.new_zeros(1)])


def _check_steps(num_steps: int) -> None:
    if num_steps < 1:
        raise ConfigError(f"num_steps is {num_steps}; expected at least 1")


def _at_step(velocity: Velocity, start: Tensor, t: Tensor) -> Velocity:
    return velocity.at_step(float(start), float(t)) if isinstance(velocity, GuidedVelocity) else velocity


def _evaluate(velocity: Velocity, state: Tensor, t: Tensor) -> Tensor:
    return velocity(state.to(t.dtype), t).double()
