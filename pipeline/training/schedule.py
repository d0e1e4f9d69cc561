"""The learning rate as a function of the step, so that a resumed run needs no state of a scheduler."""

from __future__ import annotations

import math

from ...config import TrainConfig


def learning_rate(config: TrainConfig, step: int) -> float:
    """Return the learning rate of a step.

    Args:
        config: the settings of the run, as `resolve` returns them.
        step: the step, counted from 0: the number of optimizer steps before it.
    """
    if step < config.warmup_steps:
        return config.learning_rate * step / config.warmup_steps
    if config.lr_schedule == "constant":
        return config.learning_rate
    assert config.lr_decay_steps is not None  # resolved
    progress = min(1.0, (step - config.warmup_steps) / (config.lr_decay_steps - config.warmup_steps))
    left = (1 + math.cos(math.pi * progress)) / 2 if config.lr_schedule == "cosine" else 1 - progress
    return config.learning_rate * left
