"""Exponential moving average of a model's weights."""

import copy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


class Ema(Generic[M]):
    """A frozen copy of a model that tracks its weights: `ema = decay * ema + (1 - decay) * weight`.

    The average starts at the model's current weights. Update it after every optimizer step (REPA: decay 0.9999).
    Frozen parameters and buffers are copied, not averaged. `ema.model` is an ordinary model: sample from it and save
    `ema.model.state_dict()`.
    """

    def __init__(self, model: M, decay: float = 0.9999) -> None:
        self.decay = decay
        self.model: M = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average one step toward `model`, the same network, uncompiled and unwrapped."""
        averages: list[Tensor] = []
        weights: list[Tensor] = []
        for average, weight in zip(self.model.parameters(), model.parameters(), strict=True):
            if weight.requires_grad:
                averages.append(average)
                weights.append(weight)
            else:
                average.copy_(weight)
        torch._foreach_mul_(averages, self.decay)
        torch._foreach_add_(averages, weights, alpha=1 - self.decay)
        for copied, buffer in zip(self.model.buffers(), model.buffers(), strict=True):
            copied.copy_(buffer)
