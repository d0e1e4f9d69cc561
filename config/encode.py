"""The config of `repa-pipe encode`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .base import (
    ACTORS_HELP,
    DATA,
    DEVICE_HELP,
    HARDWARE,
    MODEL,
    RAY_ADDRESS_HELP,
    RAY_HELP,
    RESOLUTION_HELP,
    STORAGE,
    Codec,
    Precision,
    option,
    uses_ray,
    weights_by_name,
)
from .paths import PathKind
from .source import SourceConfig


@dataclass(frozen=True, kw_only=True)
class EncodeConfig(SourceConfig):
    """Settings of `repa-pipe encode`."""

    kind: ClassVar[str] = "encode"

    source: str = option(
        DATA,
        "Images to encode: a folder of class folders, a zip file, tar, parquet or Arrow files, or a dataset of "
        "Hugging Face (docs/sources.md).",
    )
    store: str = option(
        DATA, "Store to create or extend: a folder, or a bucket URL such as s3://BUCKET/NAME.", path=PathKind.PATH
    )
    vae: str = option(
        MODEL,
        "VAE whose moments are stored: a known name (docs/vae.md), a Hugging Face repository, or a folder in "
        "diffusers' format.",
        "sd-vae-ft-mse",
        path=PathKind.MODEL,
    )
    encoder: tuple[str, ...] = option(
        MODEL,
        "Encoder whose patch tokens are stored (docs/encoders.md); repeatable. Default: none, only moments are stored.",
        (),
    )
    encoder_weights: tuple[str, ...] = option(
        MODEL,
        "NAME=PATH: local file with the published weights of encoder NAME; repeatable. Default: download.",
        (),
        affects_result=False,
        path=PathKind.NAMED,
    )
    resolution: int = option(DATA, RESOLUTION_HELP, 256)
    flip: bool = option(
        DATA, "Also encode the mirror image of every crop: twice the time, twice the disk space.", False
    )
    codec: Codec = option(STORAGE, "Storage format of patch tokens (docs/codecs.md).", "float16")
    shard_size: int | None = option(STORAGE, "Samples per shard. Default: 1024, fewer for small stores.", None)
    batch_size: int | None = option(
        HARDWARE,
        "Images per forward pass. Default: the value recorded in the store, else the largest that fits in GPU memory, "
        "or 16 on a CPU.",
        None,
    )
    compile: bool = option(
        HARDWARE,
        "Run the encoders through torch.compile. Tokens change by rounding, so all shards of a group must agree on it.",
        False,
    )
    device: str | None = option(HARDWARE, DEVICE_HELP, None, affects_result=False)
    precision: Precision | None = option(
        HARDWARE,
        "Autocast precision of the models. Default: fp16 on a GPU (as published; fp32 for a VAE with "
        "force_upcast), fp32 on a CPU.",
        None,
    )
    decode_threads: int | None = option(
        HARDWARE, "Threads that decode images. Default: one per CPU core.", None, affects_result=False
    )
    max_image_pixels: int = option(
        DATA,
        "Quarantine images with more pixels, before they are decoded. All images that a process decodes at the same "
        "time have at most this many together, at up to 25 bytes each.",
        178_956_970,
        affects_result=False,
    )
    max_bad: float = option(
        DATA,
        "Abort when more than this fraction of images cannot be decoded (up to 10 are always tolerated).",
        0.001,
        affects_result=False,
    )
    shard_timeout: float | None = option(
        HARDWARE,
        "Seconds after which a shard counts as hung; on Ray, its actor is killed and the shard is retried. "
        "Default: no limit.",
        None,
        affects_result=False,
    )
    ray: bool = option(HARDWARE, RAY_HELP, False, affects_result=False)
    ray_address: str | None = option(HARDWARE, RAY_ADDRESS_HELP, None, affects_result=False)
    actors: int | None = option(HARDWARE, ACTORS_HELP, None, affects_result=False)

    def validate(self) -> None:
        """Raise ConfigError for values that cannot work."""
        read_only = self.store.startswith(("http://", "https://"))
        self.require(
            not read_only, "store", "expected a folder or a bucket (s3://, gs://, az://); web servers are read-only"
        )
        self.require(
            not self.store.startswith("hf://"),
            "store",
            "stores on the Hugging Face Hub are read-only: encode into a folder, then run 'repa-pipe store push'",
        )
        self.require_resolution("resolution")
        self.require_at_least_1("shard_size", "batch_size", "actors")
        self.require(self.decode_threads is None or self.decode_threads >= 0, "decode_threads", "must be 0 or more")
        self.require(self.shard_timeout is None or self.shard_timeout > 0, "shard_timeout", "must be above 0 seconds")
        self.require(
            9 <= self.max_image_pixels <= 178_956_970,
            "max_image_pixels",
            "expected 9 to 178,956,970, which is Pillow's limit for decompression bombs",
        )
        self.require(0 <= self.max_bad <= 1, "max_bad", "expected a fraction from 0 to 1")
        self.require_no_repeats("encoder")
        weights_by_name(self.encoder_weights, self.encoder)

    @property
    def uses_ray(self) -> bool:
        """Whether the shards are encoded by Ray actors."""
        return uses_ray(self.ray, self.ray_address)

    def weights_of(self, encoder: str) -> str | None:
        """Return the weights file given for an encoder, if any."""
        return weights_by_name(self.encoder_weights, self.encoder).get(encoder)
