"""What SR-DiT draws in a training step: the tokens that its middle blocks see, and whether their output is dropped."""

from __future__ import annotations

import torch
from torch import Tensor

from ...models.srdit.config import PATH_DROP, TOKEN_DROP
from ...models.srdit.model import kept_tokens


def draw_routing(num_tokens: int, count: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Return arguments of `SRDiT.forward` for a global batch: `kept` [B, K] int64 and `path_dropped` [B] bool.

    The path is dropped for the whole batch or not at all, as published.

    Args:
        num_tokens: number of patches plus the class token.
        count: global batch size.
        generator: of the step, from a stream of its own.
    """
    uniform = torch.rand((count, num_tokens), generator=generator, device=generator.device)
    dropped = torch.rand((), generator=generator, device=generator.device) < PATH_DROP
    return {"kept": kept_tokens(uniform, TOKEN_DROP), "path_dropped": dropped.expand(count)}
