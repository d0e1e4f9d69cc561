"""What a step does: its learning rate, and what is due after it. A resumed run needs no state of a scheduler."""

from __future__ import annotations

import math
from typing import Literal

from ...config import TrainConfig


def is_due(every: int, step: int, last: int) -> bool:
    """Return whether something that is done every so many steps, and after the last one, is due; 0 for never."""
    return bool(every) and (step % every == 0 or step == last)


def learning_rate(config: TrainConfig, step: int) -> float:
    """Return the learning rate of a step.

    Args:
        config: the settings of the run, as `resolve` returns them.
        step: the step, counted from 0: the number of optimizer steps before it.
    """
    warming_up = step < config.warmup_steps
    return decayed(
        step,
        config.learning_rate,
        config.lr_final,
        config.lr_schedule,
        start=config.warmup_steps if warming_up else config.warmup_steps + config.lr_constant_steps,
        end=config.lr_decay_steps,  # resolved
        warm_up=0 if warming_up else None,
    )


def decayed(
    step: int,
    base: float,
    final: float,
    kind: Literal["constant", "cosine", "linear"],
    *,
    start: int,
    end: int | None,
    warm_up: int | None,
) -> float:
    """Return a rate that decays from `base` at step `start` to `final` at step `end`.

    Args:
        step: the step, counted from 0.
        base: rate until the decay.
        final: rate after it.
        kind: course of the decay.
        start: its first step.
        end: its last step; not needed without a decay.
        warm_up: steps of the linear increase that come before step 0: 0, or 1 in RAE, whose first rate is not 0. None
            to keep the rate at `base` before the decay.
    """
    if step < start:
        return base if warm_up is None else base * (step + warm_up) / start
    if kind == "constant":
        return base
    assert end is not None
    progress = min(1.0, (step - start) / (end - start))
    left = (1 + math.cos(math.pi * progress)) / 2 if kind == "cosine" else 1 - progress
    return final + (base - final) * left
