"""The config of `repa-pipe probe`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from .base import (
    DATA,
    DEVICE_HELP,
    HARDWARE,
    LATENTS_STATS_HELP,
    MODEL,
    MODEL_PRECISION_HELP,
    OUTPUT,
    PATH_TYPE_HELP,
    Config,
    Precision,
    option,
)
from .paths import PathKind


@dataclass(frozen=True, kw_only=True)
class ProbeConfig(Config):
    """Settings of `repa-pipe probe`."""

    kind: ClassVar[str] = "probe"

    checkpoint: str = option(MODEL, "Run folder (all its checkpoints), or checkpoint file.", path=PathKind.PATH)
    store: str | None = option(
        DATA,
        "Store whose images are probed. Default: the store that the run was trained from.",
        None,
        path=PathKind.PATH,
    )
    vae: str | None = option(
        DATA, "VAE whose latents are used. Default: the VAE of the checkpoint.", None, path=PathKind.MODEL
    )
    path_type: Literal["linear", "cosine"] | None = option(MODEL, PATH_TYPE_HELP, None)
    latents_stats: str | None = option(MODEL, LATENTS_STATS_HELP, None, path=PathKind.PATH)
    encoder: tuple[str, ...] = option(
        DATA, "Stored encoder to compare with; repeatable. Default: all encoders in the store.", ()
    )
    block: tuple[int, ...] = option(MODEL, "Block to probe, counted from 1; repeatable. Default: all blocks.", ())
    time: tuple[float, ...] = option(
        MODEL, "Time t (noise level) from 0, no noise, to 1, only noise; repeatable.", (0.5,)
    )
    num_images: int = option(DATA, "Number of images drawn from the store.", 10_000)
    test_share: float = option(DATA, "Fraction of the images that the linear classifier is tested on.", 0.2)
    ema: bool = option(MODEL, "Use the EMA weights.", True)
    seed: int = option(DATA, "Seed for the selection of images and for their noise.", 0)
    precision: Precision = option(HARDWARE, MODEL_PRECISION_HELP, "fp32")
    batch_size: int = option(HARDWARE, "Batch size of the model.", 32, affects_result=False)
    out: str | None = option(
        OUTPUT,
        "Output JSON file. Default: probe.json in the run folder.",
        None,
        affects_result=False,
        path=PathKind.PATH,
    )
    device: str | None = option(HARDWARE, DEVICE_HELP, None, affects_result=False)

    def validate(self) -> None:
        """Raise ConfigError for values that cannot work."""
        self.require_at_least_1("num_images", "batch_size")
        self.require_seed("seed")
        self.require(0 < self.test_share < 1, "test_share", "expected a fraction between 0 and 1")
        self.require(bool(self.time) and all(0 <= t <= 1 for t in self.time), "time", "expected times from 0 to 1")
        self.require(all(block >= 1 for block in self.block), "block", "blocks are counted from 1")
        self.require(self.out is None or self.out.endswith(".json"), "out", "expected a name that ends in .json")
