"""Print the tables of docs/encoders.md: `python benchmarks/encoder_table.py`."""

from collections.abc import Sequence
from typing import Any

from repa_pipe.models.encoders.entry import EncoderEntry, token_grid
from repa_pipe.models.encoders.registry import REGISTRY, TIMM_NAMES, find_entry
from repa_pipe.models.encoders.weights import create_on_meta
from repa_pipe.models.flops import encoder_flops

RESOLUTION = 256

_SHAPES_HEADER = (
    "| name | tokens | width | class token | parameters (M) | GFLOPs per image | float16 | int8 | int4 |\n"
    "|---|---:|---:|---|---:|---:|---:|---:|---:|"
)
_WEIGHTS_HEADER = "| name | weights | license | verified by |\n|---|---|---|---|"


def shapes_table(names: Sequence[str]) -> str:
    """Return a Markdown table of encoders' sizes and costs at 256 pixels. No weights are needed."""
    return "\n".join([_SHAPES_HEADER, *(_shapes_row(name, find_entry(name)) for name in names)])


def weights_table(names: Sequence[str]) -> str:
    """Return a Markdown table of the origin of encoders' weights and the evidence that their tokens are correct."""
    entries = {name: find_entry(name) for name in names}
    rows = [f"| `{n}` | {e.weights.origin()} | {e.license} | {e.verified_by} |" for n, e in entries.items()]
    return "\n".join([_WEIGHTS_HEADER, *rows])


def _shapes_row(name: str, entry: EncoderEntry) -> str:
    model: Any = create_on_meta(entry.architecture, entry.options)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    count = token_grid(RESOLUTION) ** 2
    values = count * entry.width
    cells = [
        f"`{name}`",
        str(count),
        str(entry.width),
        "yes" if entry.has_cls_token else "no",
        f"{parameters / 1e6:.1f}",
        f"{encoder_flops(name, RESOLUTION) / 1e9:.1f}",
        f"{2 * values:,}",
        f"{values + 2 * count:,}",
        f"{values // 2 + 2 * count:,}",
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    names = [*REGISTRY, *TIMM_NAMES]
    print(shapes_table(names), weights_table(names), sep="\n\n")
