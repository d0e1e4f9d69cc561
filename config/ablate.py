"""The config of `repa-pipe ablate`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .base import DATA, HARDWARE, OUTPUT, RAY_ADDRESS_HELP, Config, option


@dataclass(frozen=True, kw_only=True)
class AblateConfig(Config):
    """Settings of `repa-pipe ablate`."""

    kind: ClassVar[str] = "ablate"

    sweep: str = option(DATA, "Sweep, a TOML file (docs/ablations.md).")
    store: str = option(DATA, "Store that all runs train from.")
    out: str | None = option(
        OUTPUT, "Output folder for the runs and their comparison. Default: exps/<name of the sweep file>.", None
    )
    ray: bool | None = option(
        HARDWARE,
        "Execute runs in parallel on Ray: on this machine, or on the cluster given by --ray-address. "
        "Default: on Ray if a GPU is available.",
        None,
        affects_result=False,
    )
    ray_address: str | None = option(HARDWARE, RAY_ADDRESS_HELP, None, affects_result=False)
