"""The config of `repa-pipe ablate`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .base import DATA, HARDWARE, OUTPUT, RAY_ADDRESS_HELP, Config, is_count, option
from .paths import PathKind


@dataclass(frozen=True, kw_only=True)
class AblateConfig(Config):
    """Settings of `repa-pipe ablate`."""

    kind: ClassVar[str] = "ablate"

    sweep: str = option(DATA, "Sweep, a TOML file (docs/ablations.md).", path=PathKind.PATH)
    store: str = option(DATA, "Store that all runs train from.", path=PathKind.PATH)
    out: str | None = option(
        OUTPUT,
        "Output folder for the runs and their comparison. Default: exps/<name of the sweep file>.",
        None,
        path=PathKind.PATH,
    )
    part: str | None = option(
        OUTPUT,
        "Only execute part I of N, from 0/N to N-1/N, and write no report; for arrays of jobs. Default: all runs.",
        None,
        affects_result=False,
    )
    ray: bool | None = option(
        HARDWARE,
        "Execute runs in parallel on Ray: on this machine, or on the cluster given by --ray-address. "
        "Default: on Ray if a GPU is available.",
        None,
        affects_result=False,
    )
    ray_address: str | None = option(HARDWARE, RAY_ADDRESS_HELP, None, affects_result=False)

    def validate(self) -> None:
        """Raise ConfigError for values that cannot work."""
        number, count = self.part_of
        self.require(0 <= number < count, "part", "expected I/N with I from 0 to N - 1, such as 0/4")

    @property
    def part_of(self) -> tuple[int, int]:
        """I and N of `part`; (0, 1) for all runs, and (0, 0) for text that is not I/N."""
        number, _, count = (self.part or "0/1").partition("/")
        return (int(number), int(count)) if is_count(number) and is_count(count) else (0, 0)
