"""The config of `repa-pipe rank`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .base import DATA, HARDWARE, OUTPUT, Config, option
from .paths import PathKind


@dataclass(frozen=True, kw_only=True)
class RankConfig(Config):
    """Settings of `repa-pipe rank`."""

    kind: ClassVar[str] = "rank"

    store: str = option(DATA, "Store whose encoders are ranked.", path=PathKind.PATH)
    num_samples: int = option(DATA, "Number of samples drawn from those that all encoders have.", 1000)
    seed: int = option(DATA, "Seed for the selection of samples.", 0)
    batch_size: int = option(HARDWARE, "Samples read at a time.", 16, affects_result=False)
    out: str = option(
        OUTPUT,
        "Output JSON file; the figure is written next to it as .html.",
        "rank.json",
        affects_result=False,
        path=PathKind.PATH,
    )

    def validate(self) -> None:
        """Raise ConfigError for values that cannot work."""
        self.require_at_least_1("num_samples", "batch_size")
        self.require_seed("seed")
        self.require(self.out.endswith(".json"), "out", "expected a name that ends in .json")
