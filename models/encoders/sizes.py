"""Image sizes that an encoder accepts, found without weights, memory or images.

A network of timm may require windows of a fixed size or a minimum size. It is run on the meta device, where tensors
have shapes but no contents.
"""

from __future__ import annotations

import warnings
from typing import Any

from ...errors import ConfigError, first_line
from .entry import EncoderEntry, token_grid
from .registry import parse_name
from .weights import create_on_meta

STEP = 16  # pixels per token
SEARCHED = 16  # steps above and below a size that is refused, to suggest another one


def require_encoder_resolution(name: str, resolution: int) -> None:
    """Raise ConfigError, with the nearest sizes that work, unless the encoder accepts images of this size."""
    entry, _ = parse_name(name)
    problem = _problem(entry, resolution)
    if problem is None:
        return
    below = (resolution - STEP * i for i in range(1, SEARCHED + 1) if resolution > STEP * i)
    above = (resolution + STEP * i for i in range(1, SEARCHED + 1))
    nearest = [next((size for size in sizes if _problem(entry, size) is None), None) for sizes in (below, above)]
    accepted = " or ".join(str(size) for size in nearest if size)
    raise ConfigError(
        f"{name} does not accept images of {resolution} pixels ({problem}): choose "
        f"{f'--resolution {accepted}, or ' if accepted else ''}another encoder"
    )


def _problem(entry: EncoderEntry, resolution: int) -> str | None:
    """Return why the network cannot run on images of this size; None if it can."""
    import torch

    token_grid(resolution)
    model: Any = create_on_meta(entry.architecture, entry.options).eval()
    size = entry.input_size(resolution)
    try:
        set_input_size(model, size)
        with torch.no_grad():
            model.forward_intermediates(
                torch.empty(1, 3, size, size, device="meta"),
                indices=[entry.last_index],
                norm=entry.final_norm,
                stop_early=True,
                intermediates_only=True,
            )
    except Exception as error:  # networks assert, or fail wherever a shape first does not fit
        return first_line(error)[:120]
    return None


def set_input_size(model: Any, size: int) -> None:
    """Make a network accept square inputs of a size, unless it accepts any size or only one."""
    if hasattr(model, "set_input_size"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # timm's tensor operations warn
            model.set_input_size(img_size=(size, size))
