"""`repa-pipe encoders`: the encoders known by name, with their sizes, grids, licenses and weights."""

from __future__ import annotations

from fnmatch import fnmatch

from ...errors import ConfigError
from ...models.encoders import encoder_names
from ...models.encoders.entry import token_grid
from ...models.encoders.registry import find_entry
from ...models.encoders.weights import create_on_meta
from ..runtime.tables import text_table

RESOLUTION = 256
HEADER = ("encoder", "parameters", "tokens", "class token", "license", "weights")


def run(pattern: str = "*") -> str:
    """Return a table of the encoders whose name matches a pattern such as `dino*`; sizes are those at 256 pixels.

    Raises:
        ConfigError: no name matches.
    """
    names = [name for name in encoder_names() if fnmatch(name.lower(), pattern.lower())]
    if not names:
        raise ConfigError(f"no encoder matches {pattern!r}: expected one of {', '.join(encoder_names())}, or a pattern")
    return text_table(HEADER, [_row(name) for name in names])


def _row(name: str) -> tuple[str, ...]:
    entry, side = find_entry(name), token_grid(RESOLUTION)
    parameters = sum(weight.numel() for weight in create_on_meta(entry.architecture, entry.options).parameters())
    return (
        name,
        f"{parameters / 1e6:,.1f} M",
        f"{side} x {side} x {entry.width}",
        "yes" if entry.has_cls_token else "no",
        entry.license,
        entry.weights.origin(),
    )
