"""The config of `repa-pipe export`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from .base import MODEL, OUTPUT, Config, option
from .paths import PathKind


@dataclass(frozen=True, kw_only=True)
class ExportConfig(Config):
    """Settings of `repa-pipe export`."""

    kind: ClassVar[str] = "export"

    checkpoint: str = option(
        MODEL, "Run folder (its last checkpoint), or checkpoint file of repa-pipe.", path=PathKind.PATH
    )
    to: Literal["safetensors", "diffusers", "hub"] = option(
        OUTPUT,
        "safetensors: one file, which `sample` and `train --init-from` read; diffusers: a folder with the VAE, which "
        "diffusers' DiffusionPipeline loads (SiT only); hub: a folder that is uploaded to the Hugging Face Hub.",
        "safetensors",
    )
    out: str = option(OUTPUT, "Output file NAME.safetensors, or output folder.", path=PathKind.PATH)
    ema: bool = option(MODEL, "Export the EMA weights.", True)
    license: str | None = option(
        OUTPUT,
        "License of the weights, such as cc-by-nc-4.0 (identifiers of the Hugging Face Hub); required for folders. "
        "Default: none.",
        None,
    )

    repo: str | None = option(
        OUTPUT, "Model repository on the Hugging Face Hub, USER/NAME; created if it is missing. Default: none.", None
    )
    private: bool = option(OUTPUT, "Create the repository as a private one.", False)
    with_diffusers: bool = option(OUTPUT, "With --to hub, also upload the files of --to diffusers.", False)

    def validate(self) -> None:
        """Raise ConfigError for values that cannot work."""
        is_hub = self.to == "hub"
        self.require(is_hub == (self.repo is not None), "repo", "expected USER/NAME with --to hub, and only then")
        self.require(self.repo is None or self.repo.count("/") == 1, "repo", "expected USER/NAME")
        for name in ("private", "with_diffusers"):
            self.require(is_hub or not getattr(self, name), name, "requires --to hub")
        is_needed = self.to != "safetensors"
        self.require(not is_needed or bool(self.license), "license", "expected the license of the weights")
        self.require(is_needed or self.license is None, "license", "requires --to diffusers or hub")
