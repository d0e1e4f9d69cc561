"""The exponential moving average of a model's weights."""

import copy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


class Ema(Generic[M]):
    """A frozen copy of a model that follows its weights: `ema = decay * ema + (1 - decay) * weight`.

    It starts as the weights that the model has, and is updated after every optimizer step (REPA: decay 0.9999). What is
    not trained, frozen parameters and buffers, is copied. `ema.model` is an ordinary model: sample with it, and save
    `ema.model.state_dict()`.
    """

    def __init__(self, model: M, decay: float = 0.9999) -> None:
        self.decay = decay
        self.model: M = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take one step towards `model`, the uncompiled, unwrapped model that this was made from."""
        averaged: list[Tensor] = []
        trained: list[Tensor] = []
        for average, weight in zip(self.model.parameters(), model.parameters(), strict=True):
            if weight.requires_grad:
                averaged.append(average)
                trained.append(weight)
            else:
                average.copy_(weight)
        torch._foreach_mul_(averaged, self.decay)
        torch._foreach_add_(averaged, trained, alpha=1 - self.decay)
        for kept, buffer in zip(self.model.buffers(), model.buffers(), strict=True):
            kept.copy_(buffer)
