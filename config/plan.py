"""The config of `repa-pipe plan`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .base import DATA, HARDWARE, MODEL, RESOLUTION_HELP, STORAGE, Codec, option
from .paths import PathKind
from .source import SourceConfig


@dataclass(frozen=True, kw_only=True)
class PlanConfig(SourceConfig):
    """Settings of `repa-pipe plan`."""

    kind: ClassVar[str] = "plan"

    source: str | None = option(DATA, "Images to count, same as `encode --source`. Default: use --images.", None)
    images: int | None = option(
        DATA, "Number of images. Default: counted in --source, else 1,281,167 (ImageNet).", None
    )
    vae: str = option(MODEL, "Same as `encode --vae`.", "sd-vae-ft-mse", path=PathKind.MODEL)
    encoder: tuple[str, ...] = option(MODEL, "Same as `encode --encoder`; repeatable. Default: none.", ())
    encoder_weights: tuple[str, ...] = option(
        MODEL, "Same as `encode --encoder-weights`; used by --probe only. Default: download.", (), path=PathKind.NAMED
    )
    resolution: int = option(DATA, RESOLUTION_HELP, 256)
    flip: bool = option(DATA, "Also encode the mirror image of every crop.", False)
    codec: Codec = option(STORAGE, "Storage format of patch tokens (docs/codecs.md).", "float16")
    gpus: int = option(HARDWARE, "Number of GPUs for encoding and training.", 1)
    token_latents: str | None = option(
        MODEL,
        "Encoder, one of --encoder, whose tokens are the latents instead of a VAE's (RAE). Default: a VAE's latents.",
        None,
    )
    model: str = option(MODEL, "Model to train, same as `train --model`.", "SiT-XL/2")
    epochs: float = option(
        MODEL, "Total epochs of all training runs that will use the store; REPA's 400,000 steps are 80 epochs.", 80.0
    )
    probe: bool = option(
        HARDWARE, "Time the models on this machine (a few seconds per model) instead of using recorded speeds.", False
    )
    device: str | None = option(HARDWARE, "Torch device for --probe. Default: cuda if available, else cpu.", None)

    def validate(self) -> None:
        """Raise ConfigError for values that cannot work."""
        self.require_resolution("resolution")
        self.require_at_least_1("images", "gpus")
        self.require(self.epochs > 0, "epochs", "must be above 0")
        self.require_no_repeats("encoder")
