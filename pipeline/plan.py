"""`repa-pipe plan`: what a store costs in bytes and hours, and whether training ever earns them back."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..config import EncodeConfig, PlanConfig
from ..errors import ConfigError
from ..models.encoders import describe_encoder
from ..models.sit import SIT_PRESETS
from ..models.throughput import READING, encoder_seconds, step_seconds, vae_seconds
from ..models.vae import describe_vae
from ..sources import open_source
from ..stores.codecs import make_codec
from ..stores.layout import features_group, latents_group
from .encoding.batch_size import CPU_BATCH
from .encoding.shard import load_group_encoders
from .runtime.device import choose_device

IMAGENET = 1_281_167  # images of its training set
LITTLE = 0.10  # a gain in speed below this share of a step is called little
PROBE_SECONDS = 3.0
PROBE_BATCH = 64  # on a GPU


@dataclass(frozen=True, slots=True)
class Cost:
    """One model's passes over all images, on all GPUs."""

    name: str
    hours: float
    origin: str  # of the figure


@dataclass(frozen=True, slots=True)
class PlanResult:
    """What a store costs and what it earns, against the same training with the encoder online."""

    images: int
    sample_bytes: int
    costs: list[Cost]
    where: str
    model: str
    epochs: float
    step_origin: str
    online_share: float  # seconds of the online encoder, as a share of a step from the store
    payback_epochs: float  # until encoding the tokens is earned back; infinite when it never is
    saved_hours: float  # over all epochs, encoding the tokens paid; on the table's GPUs
    bytes_a_second: float  # that training reads when the store is as fast as assumed
    break_even_bytes_a_second: float  # below which the encoder online is faster

    @property
    def encode_hours(self) -> float:
        """Of all models."""
        return sum(cost.hours for cost in self.costs)

    @property
    def gigabytes(self) -> float:
        """The whole store, checksums and indices left out."""
        return self.images * self.sample_bytes / 1e9

    @property
    def verdict(self) -> str:
        """One sentence."""
        if self.online_share == 0:
            return "no --encoder is named: there is nothing to compare with"
        if self.payback_epochs > self.epochs:
            return (
                f"DOES NOT PAY: {self.epochs:g} epochs are planned, earning the tokens back takes "
                f"{self.payback_epochs:.1f}; run the encoder online"
            )
        gain = f"steps are {100 * (self.online_share - READING):.0f} % faster"
        if self.online_share - READING < LITTLE:
            return (
                f"HARDLY PAYS by speed: {gain}, for {self.gigabytes:,.0f} GB; "
                "it may pay by sparing memory, image decoding and differences between runs"
            )
        return f"PAYS: {gain}, and {self.epochs:g} epochs save {self.saved_hours:,.1f} h"

    def describe(self) -> str:
        """The plan in words."""
        lines = [
            f"{self.images:,} images, {self.sample_bytes:,} bytes each: {self.gigabytes:,.1f} GB",
            f"encoding, {self.where}: {self.encode_hours:,.2f} h where decoding keeps up",
            *(f"  {cost.name}: {cost.hours:,.2f} h ({cost.origin})" for cost in self.costs),
        ]
        if self.online_share:
            lines += [
                f"training {self.model} for {self.epochs:g} epochs, on H100s (step: {self.step_origin}):",
                f"  the encoder online adds {100 * self.online_share:.0f} % to a step, reading the store "
                f"{100 * READING:.1f} %",
                f"  encoding the tokens is earned back after {self.payback_epochs:.1f} epochs; "
                f"{self.epochs:g} epochs save {self.saved_hours:,.1f} h",
                f"  the store has to give {self.bytes_a_second / 1e6:,.0f} MB/s of random samples; below "
                f"{self.break_even_bytes_a_second / 1e6:,.0f} MB/s the encoder online is faster",
            ]
        return "\n".join([*lines, self.verdict])


def run(config: PlanConfig) -> PlanResult:
    """Work out a plan; ConfigError for unknown models, SourceError for a source that holds no images."""
    if config.model not in SIT_PRESETS:
        raise ConfigError(f"--model is {config.model!r}: choose one of {', '.join(SIT_PRESETS)}")
    images = config.images or _count(config)
    views = 2 if config.flip else 1
    table = {config.vae: vae_seconds(config.vae, config.resolution)}
    table |= {name: encoder_seconds(name, config.resolution) for name in config.encoder}
    found, where = (_probe(config), _this_machine(config)) if config.probe else (table, "on H100s")
    costs = [
        Cost(name, images * views * seconds / config.gpus / 3600, origin) for name, (seconds, origin) in found.items()
    ]
    channels, downsampling = describe_vae(config.vae)
    widths = tuple(describe_encoder(name, config.resolution).width for name in config.encoder)
    step, step_origin = step_seconds(config.model, config.resolution // downsampling, channels, widths or (768,))
    online = sum(table[name][0] for name in config.encoder)
    saved = online - READING * step
    sample_bytes = bytes_of_sample(config)
    view_bytes = sample_bytes / views
    return PlanResult(
        images=images,
        sample_bytes=sample_bytes,
        costs=costs,
        where=f"{where}, {config.gpus} of them" if config.gpus > 1 else where,
        model=config.model,
        epochs=config.epochs,
        step_origin=step_origin,
        online_share=online / step,
        payback_epochs=views * online / saved if saved > 0 else float("inf"),
        saved_hours=images * (config.epochs * saved - views * online) / config.gpus / 3600,
        bytes_a_second=config.gpus * view_bytes / step,
        break_even_bytes_a_second=config.gpus * view_bytes / (step + online),
    )


def bytes_of_sample(config: PlanConfig) -> int:
    """Bytes of one image in the store, checksums and indices left out."""
    channels, downsampling = describe_vae(config.vae)
    total = 4 * 2 * channels * (config.resolution // downsampling) ** 2
    for name in config.encoder:
        info = describe_encoder(name, config.resolution)
        total += sum(array.sample_bytes for array in make_codec(config.codec, info.num_tokens, info.width).arrays)
        total += 2 * info.width * info.has_cls_token
    return total * (2 if config.flip else 1)


def _count(config: PlanConfig) -> int:
    return len(open_source(config.source, config.source_kind).index()) if config.source else IMAGENET


def _this_machine(config: PlanConfig) -> str:
    device = choose_device(config.device)
    return f"on this machine's {torch.cuda.get_device_name(device) if device.type == 'cuda' else device.type}"


def _probe(config: PlanConfig) -> dict[str, tuple[float, str]]:
    """Seconds an image of every model on this machine, with the weights and the code that `encode` would use."""
    device = choose_device(config.device)
    on_gpu = device.type == "cuda"
    encoding = EncodeConfig(
        source=config.source or "-",
        store="-",
        vae=config.vae,
        encoder=config.encoder,
        encoder_weights=config.encoder_weights,
        resolution=config.resolution,
        codec=config.codec,
    )
    crops = torch.randint(
        0,
        256,
        (PROBE_BATCH if on_gpu else CPU_BATCH, 3, config.resolution, config.resolution),
        dtype=torch.uint8,
        device=device,
    )
    groups = {config.vae: latents_group(config.vae)} | {name: features_group(name) for name in config.encoder}
    seconds = {}
    for name, group in groups.items():
        (stage,) = load_group_encoders(encoding, (group,), device, "fp16" if on_gpu else "fp32")
        seconds[name] = (_time(stage, crops), "measured here")
    return seconds


def _time(stage: Callable[[torch.Tensor], object], crops: torch.Tensor) -> float:
    """Seconds an image; stages end with a copy to the host, so nothing is left running."""
    stage(crops)
    start, batches = time.perf_counter(), 0
    while time.perf_counter() - start < PROBE_SECONDS:
        stage(crops)
        batches += 1
    return (time.perf_counter() - start) / (batches * len(crops))
