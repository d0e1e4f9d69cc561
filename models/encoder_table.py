"""The tables of `docs/encoders.md`: `python -m repa_pipe.models.encoder_table` prints them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from .encoder_entry import EncoderEntry, token_grid
from .encoder_registry import REGISTRY, TIMM_NAMES, find_entry
from .encoder_weights import create_on_meta

RESOLUTION = 256

SHAPES = (
    "| name | tokens | width | class token | parameters (M) | FLOPs an image (G) | float16 | int8 | int4 |\n"
    "|---|---:|---:|---|---:|---:|---:|---:|---:|"
)
WEIGHTS = "| name | weights | licence | verified by |\n|---|---|---|---|"


def shapes_table(names: Sequence[str]) -> str:
    """Return a Markdown table of encoders' sizes and costs at 256 pixels; needs no weights."""
    return "\n".join([SHAPES, *(_shapes_row(name, find_entry(name)) for name in names)])


def weights_table(names: Sequence[str]) -> str:
    """Return a Markdown table of where encoders' weights come from, and what verifies their tokens."""
    entries = {name: find_entry(name) for name in names}
    rows = [f"| `{n}` | {e.weights.origin()} | {e.license} | {e.verified_by} |" for n, e in entries.items()]
    return "\n".join([WEIGHTS, *rows])


def _shapes_row(name: str, entry: EncoderEntry) -> str:
    model: Any = create_on_meta(entry.architecture, entry.options)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    size = entry.input_size(RESOLUTION)
    if hasattr(model, "set_input_size"):
        model.set_input_size(img_size=(size, size))
    count = token_grid(RESOLUTION) ** 2
    values = count * entry.width
    cells = [
        f"`{name}`",
        str(count),
        str(entry.width),
        "yes" if entry.has_cls_token else "no",
        f"{parameters / 1e6:.1f}",
        f"{_flops(model, entry, size) / 1e9:.1f}",
        f"{2 * values:,}",
        f"{values + 2 * count:,}",
        f"{values // 2 + 2 * count:,}",
    ]
    return f"| {' | '.join(cells)} |"


def _flops(model: Any, entry: EncoderEntry, size: int) -> int:
    """Count two operations for each multiplication and addition of matrix products, attention and convolutions."""
    index = entry.depth - 1 if entry.depth is not None else entry.stage
    pixels = torch.empty(1, 3, size, size, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval().forward_intermediates(
            pixels, indices=[index], norm=entry.final_norm, stop_early=True, intermediates_only=True
        )
    return int(counter.get_total_flops())


if __name__ == "__main__":
    everything = [*REGISTRY, *TIMM_NAMES]
    print(shapes_table(everything), weights_table(everything), sep="\n\n")
