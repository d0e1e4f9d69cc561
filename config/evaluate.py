"""The config of `repa-pipe evaluate`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .base import DATA, DEVICE_HELP, HARDWARE, MODEL, OUTPUT, Config, option, weights_by_name
from .paths import PathKind
from .source import PLUG_IN_HELP


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Config):
    """Settings of `repa-pipe evaluate`."""

    kind: ClassVar[str] = "evaluate"

    samples: str = option(
        DATA,
        "Images to evaluate: an .npz of uint8 [N, H, W, 3], a folder of images, or a run folder.",
        path=PathKind.PATH,
    )
    reference: str = option(
        DATA,
        "Reference to compare with: an .npz (images, statistics mu and sigma, or both), a folder of images, or a "
        "store.",
        path=PathKind.PATH,
    )
    detector: tuple[str, ...] = option(
        MODEL,
        "Feature extractor: inception (FID), a network of published distances such as dinov2-l-256, the name of an "
        "encoder (FD of that encoder), or lpips (diversity within classes); repeatable.",
        ("inception",),
    )
    encoder_weights: tuple[str, ...] = option(
        MODEL, "NAME=PATH: local weights file of detector NAME; repeatable. Default: download.", (), path=PathKind.NAMED
    )
    source: str | None = option(
        DATA, "Location of the images of a reference store. Default: where they were encoded from.", None
    )
    source_kind: str | None = option(DATA, PLUG_IN_HELP, None, affects_result=False)
    resize: int | None = option(
        DATA,
        "Scale and crop all images to this many pixels, as encode does. Default: images must be square and of one "
        "size.",
        None,
    )
    intervals: bool = option(
        MODEL, "Also compute 95% intervals of the metrics over the evaluated images. Default: values alone.", False
    )
    batch_size: int = option(HARDWARE, "Images per forward pass of a detector.", 32, affects_result=False)
    out: str | None = option(
        OUTPUT, "Output JSON file. Default: next to the samples.", None, affects_result=False, path=PathKind.PATH
    )
    device: str | None = option(HARDWARE, DEVICE_HELP, None, affects_result=False)

    def validate(self) -> None:
        """Raise ConfigError for values that cannot work."""
        self.require(bool(self.detector), "detector", "at least one is required")
        self.require_at_least_1("batch_size", "resize")
        weights = weights_by_name(self.encoder_weights, self.detector)
        self.require("lpips" not in weights, "encoder_weights", "lpips takes its weights from torch's hub folder")

    def weights_of(self, detector: str) -> str | None:
        """Return the weights file given for a detector, if any."""
        return weights_by_name(self.encoder_weights, self.detector).get(detector)
