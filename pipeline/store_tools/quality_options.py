"""The settings of `repa-pipe store quality`, which are checked before torch is imported."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...errors import ConfigError

RFID, PSNR, SSIM, LPIPS = "rfid", "psnr", "ssim", "lpips"
OPTIONAL = (RFID, SSIM, LPIPS)


@dataclass(frozen=True, kw_only=True, slots=True)
class QualityOptions:
    """What to decode, and how to compare it.

    Attributes:
        vae: VAE whose latents are decoded. None: the only one of the store.
        token_latents: encoder whose tokens are decoded instead; needs `decoder`.
        decoder: a VAE that decodes latents, or a decoder of tokens. None: the VAE of the group.
        source: location of the images. None: as recorded in the store.
        source_kind: kind of the source; required for a plug-in.
        images: number of images, spread evenly over the store. None: all.
        without: metrics that are left out, of `OPTIONAL`.
        detector: `inception`, or the name of an encoder.
        detector_weights: local weights file of the detector. None: download.
        batch_size: images that are decoded at a time.
        device: torch device. None: cuda if available, else cpu.
        out: the JSON file; the figure is written next to it as .png.
    """

    vae: str | None = None
    token_latents: str | None = None
    decoder: str | None = None
    source: str | None = None
    source_kind: str | None = None
    images: int | None = None
    without: tuple[str, ...] = ()
    detector: str = "inception"
    detector_weights: str | None = None
    batch_size: int = 16
    device: str | None = None
    out: str = "quality.json"

    def validate(self) -> None:
        """Raise ConfigError for values that cannot work."""
        if Path(self.out).suffix != ".json":
            raise ConfigError(f"--out is {self.out!r}: expected a name that ends in .json")
        for name, value in (("--images", self.images), ("--batch-size", self.batch_size)):
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}: expected at least 1")
        if self.vae is not None and self.token_latents is not None:
            raise ConfigError("expected either --vae or --token-latents")
        if self.token_latents is not None and self.decoder is None:
            raise ConfigError(
                "--token-latents needs --decoder, the AutoencoderRAE of diffusers that decodes the tokens"
            )
        if self.images == 1 and RFID not in self.without:
            raise ConfigError("--images is 1: rFID needs at least 2 images; pass --without rfid to leave it out")
