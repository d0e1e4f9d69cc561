"""Linear layers as the published models initialize them."""

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

small_normal = partial(nn.init.normal_, std=0.02)


def linear(inputs: int, outputs: int, init: Callable[[Tensor], Tensor] = nn.init.xavier_uniform_) -> nn.Linear:
    """Build a linear layer with weights initialized by `init` and zero biases."""
    layer = nn.Linear(inputs, outputs)
    init(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
