"""The config of `repa-pipe nearest`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .base import DATA, DEVICE_HELP, HARDWARE, MODEL, OUTPUT, Config, option
from .paths import PathKind
from .source import PLUG_IN_HELP


@dataclass(frozen=True, kw_only=True)
class NearestConfig(Config):
    """Settings of `repa-pipe nearest`."""

    kind: ClassVar[str] = "nearest"

    samples: str = option(
        DATA,
        "Generated images: an .npz of uint8 [N, H, W, 3], a folder of images, or a run folder.",
        path=PathKind.PATH,
    )
    store: str = option(DATA, "Store that the model was trained from.", path=PathKind.PATH)
    encoder: str | None = option(MODEL, "Encoder of the store to compare with. Default: the only one.", None)
    encoder_weights: tuple[str, ...] = option(
        MODEL, "NAME=PATH: local weights file of encoder NAME. Default: download.", (), path=PathKind.NAMED
    )
    num_baseline: int = option(
        DATA, "Number of training images whose nearest other training images are the baseline.", 1000
    )
    seed: int = option(DATA, "Seed for the selection of these images.", 0)
    source: str | None = option(
        DATA,
        "Location of the training images, which the figure shows. Default: where they were encoded from.",
        None,
        affects_result=False,
    )
    source_kind: str | None = option(DATA, PLUG_IN_HELP, None, affects_result=False)
    batch_size: int = option(HARDWARE, "Images per forward pass of the encoder.", 32, affects_result=False)
    device: str | None = option(HARDWARE, DEVICE_HELP, None, affects_result=False)
    out: str = option(
        OUTPUT,
        "Output JSON file; the figure is written next to it as .html.",
        "nearest.json",
        affects_result=False,
        path=PathKind.PATH,
    )

    def validate(self) -> None:
        """Raise ConfigError for values that cannot work."""
        self.require(self.num_baseline >= 2, "num_baseline", "expected at least 2")
        self.require_at_least_1("batch_size")
        self.require_seed("seed")
        self.require(self.out.endswith(".json"), "out", "expected a name that ends in .json")
