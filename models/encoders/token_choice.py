"""Which tokens of an encoder are taken: `NAME@block=8`, `NAME@norm=plain`, `NAME@layers=11.13.15`, joined with `+`.

`NAME@block=8+norm=none` takes the input of the blocks after block 8, from which `last_blocks` recomputes attention.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ...errors import ConfigError
from .entry import EncoderEntry

ATTENTION_BLOCKS = 4  # number of an encoder's blocks whose attention HASTE aligns with
_VALUES = {"block": r"\d{1,4}", "norm": "plain|none", "layers": r"\d{1,4}(\.\d{1,4})*"}


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenChoice:
    """Which tokens of an encoder are taken, and how they are normalized.

    Attributes:
        block: the block whose tokens are taken, counted from 1; None for a hierarchical network.
        plain_norm: the final norm has no weight and no bias, as in RAE (arXiv 2510.11690).
        no_norm: tokens are taken before the final norm, as the next block reads them (HASTE, arXiv 2505.16792).
        layers: blocks whose normalized tokens are combined as in RAEv2 (arXiv 2605.18324), counted from 0 as there, in
            ascending order; the last is `block` - 1. Empty for a single block.
    """

    block: int | None
    plain_norm: bool = False
    no_norm: bool = False
    layers: tuple[int, ...] = ()

    @property
    def indices(self) -> list[int] | None:
        """The blocks to take, counted from 0; None for those of a hierarchical network."""
        if self.layers:
            return list(self.layers)
        return None if self.block is None else [self.block - 1]


def parse_choice(name: str, base: str, entry: EncoderEntry, options: str) -> TokenChoice:
    """Read what stands after the `@` of an encoder's name.

    Args:
        name: the whole name, for errors.
        base: the part before the `@`.
        entry: the encoder.
        options: the part after the `@`; empty for the encoder's usual tokens.

    Raises:
        ConfigError: the options cannot be read, or the encoder does not have such tokens.
    """
    given: dict[str, str] = {}
    for option in options.split("+") if options else []:
        key, _, value = option.partition("=")
        if key in given or not re.fullmatch(_VALUES.get(key, "(?!)"), value):
            raise ConfigError(
                f"encoder {name!r}: expected NAME@block=N, NAME@norm=plain, NAME@block=N+norm=none or "
                f"NAME@layers=N.N.N, found '@{options}' after the name"
            )
        given[key] = value
    choice = TokenChoice(
        block=int(given["block"]) if "block" in given else entry.depth,
        plain_norm=given.get("norm") == "plain" or "layers" in given,
        no_norm=given.get("norm") == "none",
        layers=tuple(int(number) for number in given["layers"].split(".")) if "layers" in given else (),
    )
    _require_possible(name, base, entry, given, choice)
    if choice.layers:
        return TokenChoice(block=choice.layers[-1] + 1, plain_norm=True, layers=choice.layers)
    return choice


def is_block_input(name: str) -> bool:
    """Return whether the tokens of an encoder of this name are the input of a block, from its option norm=none."""
    return "norm=none" in name.partition("@")[2].split("+")


def _require_possible(name: str, base: str, entry: EncoderEntry, given: dict[str, str], choice: TokenChoice) -> None:
    if given and entry.depth is None:
        raise ConfigError(f"encoder {name!r}: {base} has no numbered blocks; remove '@{name.partition('@')[2]}'")
    if choice.no_norm:
        _require_last_blocks(name, base, entry, given)
    if choice.plain_norm and not entry.final_norm:
        raise ConfigError(f"encoder {name!r}: {base} gives tokens before its final norm; norm=plain needs one")
    if given.keys() >= {"block", "layers"}:
        raise ConfigError(f"encoder {name!r}: block and layers exclude each other")
    if choice.layers and entry.layer_rule is None:
        raise ConfigError(
            f"encoder {name!r}: layers are combined by a rule that is known for DINOv2 and DINOv3 only, found {base}"
        )
    if list(choice.layers) != sorted(set(choice.layers)):
        raise ConfigError(f"encoder {name!r}: expected different layers in ascending order, found {given['layers']}")
    if choice.layers and entry.depth is not None and choice.layers[-1] >= entry.depth:
        raise ConfigError(
            f"encoder {name!r}: expected layers 0 to {entry.depth - 1} of {base}, found {choice.layers[-1]}"
        )
    if choice.block is not None and entry.depth is not None and not 1 <= choice.block <= entry.depth:
        raise ConfigError(f"encoder {name!r}: expected blocks 1 to {entry.depth} of {base}, found {choice.block}")


def _require_last_blocks(name: str, base: str, entry: EncoderEntry, given: dict[str, str]) -> None:
    """Raise ConfigError unless attention can be recomputed from the tokens after the block."""
    if not entry.recomputes_attention or entry.depth is None:
        raise ConfigError(
            f"encoder {name!r}: norm=none is for recomputing attention, which is possible for plain DINOv2 only "
            f"(dinov2-vit-s, -b, -l and -g), found {base}"
        )
    last = entry.depth - ATTENTION_BLOCKS
    if "layers" in given or not 1 <= int(given.get("block", 0)) <= last:
        raise ConfigError(
            f"encoder {name!r}: norm=none requires block=N with N from 1 to {last} of {base}, so that "
            f"{ATTENTION_BLOCKS} blocks follow"
        )
