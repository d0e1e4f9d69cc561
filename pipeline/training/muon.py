"""Muon, the optimizer of matrices whose updates are orthogonal (github.com/KellerJordan/Muon).

`torch.optim.Muon` iterates in bfloat16 with the same coefficients in every step. RAEv2 trains with those of Polar
Express (arXiv 2505.16932), one triple per step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

# The coefficients of Polar Express, made slightly smaller so that rounding does not let singular values grow
_POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
)
_SAFETY = 1.05
COEFFICIENTS = tuple((a / _SAFETY, b / _SAFETY**3, c / _SAFETY**5) for a, b, c in _POLAR_EXPRESS)
_RESTART_AFTER = 2  # steps; the iterated small matrix loses accuracy
_EPSILON = 1e-7


def orthogonalize(matrix: Tensor) -> Tensor:
    """Return about the nearest matrix with orthonormal rows or columns: singular values between 0.9 and 1.12.

    Newton-Schulz steps, in the form that iterates the Gram matrix of the smaller side.

    Args:
        matrix: `[rows, columns]`, of any floating dtype; computed in this dtype.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + _EPSILON)
    gram, product = x @ x.T, None
    for step, (a, b, c) in enumerate(COEFFICIENTS):
        if step == _RESTART_AFTER and product is not None:
            x = product @ x
            gram, product = x @ x.T, None
        factor = b * gram + c * (gram @ gram)
        factor.diagonal().add_(a)
        product = factor if product is None else factor @ product
        if step < len(COEFFICIENTS) - 1:
            gram = factor @ gram @ factor
    assert product is not None
    result: Tensor = product @ x
    return result.T if tall else result


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum and updates of the size of AdamW's (arXiv 2502.16982).

    `M ← momentum M + G`; `W ← W (1 - lr weight_decay) - lr 0.2 sqrt(max(rows, columns)) orthogonalize(G + momentum M)`.

    Args:
        params: matrices.
        lr: learning rate.
        momentum: share of the gradients before.
        weight_decay: decoupled, as in AdamW.
        half: orthogonalize in half precision, as published: gradients and updates are rounded to bfloat16, and the
            steps between are computed in float16. Updates differ by 0.5 to 0.7 % from those in float32.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        half: bool = False,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self._half = half

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update all matrices that have a gradient."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, weight.grad, group)
        return loss

    def _update(self, weight: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[weight]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        average: Tensor = state["momentum_buffer"]
        found_inf: Tensor | None = getattr(self, "found_inf", None)  # set by callers that check for finite numbers
        before = (weight.clone(), average.clone()) if found_inf is not None else None
        average.mul_(group["momentum"]).add_(gradient)
        direction = gradient.add(average, alpha=group["momentum"])
        rounded = direction.bfloat16().half() if self._half else direction
        direction = orthogonalize(rounded).to(torch.bfloat16 if self._half else weight.dtype)
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        weight.sub_((direction * (group["lr"] * 0.2 * max(weight.shape) ** 0.5)).to(weight.dtype))
        if found_inf is not None and before is not None:  # on the device, for which the host does not wait
            for value, old in zip((weight, average), before, strict=True):
                value.copy_(torch.where(found_inf != 0, old, value))
