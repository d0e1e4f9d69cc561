"""`repa-pipe plan`: the cost of a store in bytes and hours, and whether training pays it back.

Names and the source are checked before torch is imported.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..config import EncodeConfig, PlanConfig
from ..errors import ConfigError
from ..models.architectures import model_names
from ..models.encoders.registry import check_encoder_name
from ..models.encoders.token_choice import is_block_input
from ..models.throughput import READING, attention_seconds, encoder_seconds, step_seconds, vae_seconds
from ..models.vae_files import PIXELS, check_vae, describe_vae, is_fixed, require_vae_resolution
from ..sources import open_source
from ..stores.layout import features_group, latents_group

if TYPE_CHECKING:
    import torch

IMAGENET = 1_281_167  # images in its training set
SMALL_GAIN = 0.10  # in speed, as a fraction of a step
PROBE_SECONDS = 3.0
PROBE_BATCH = 64  # on a GPU


@dataclass(frozen=True, slots=True)
class Cost:
    """The time that one model takes for all images, on all GPUs."""

    name: str
    hours: float
    origin: str  # how `hours` were determined


@dataclass(frozen=True, slots=True)
class PlanResult:
    """Costs and gains of a store, compared with running the encoder online during training."""

    images: int
    sample_bytes: int
    costs: list[Cost]
    where: str
    model: str
    epochs: float
    step_origin: str
    online_share: float  # seconds of the online encoder as a fraction of a step from the store
    attention_share: float  # the same of the encoder's last blocks, which --attn-coeff runs in a step from the store
    payback_epochs: float  # epochs until encoding the tokens has paid back; infinite if never
    saved_hours: float  # over all epochs, minus encoding the tokens; on H100s
    read_bytes_per_second: float  # that training reads
    break_even_bytes_per_second: float  # below which the encoder online is faster

    @property
    def encode_hours(self) -> float:
        """Hours of encoding with all models."""
        return sum(cost.hours for cost in self.costs)

    @property
    def gigabytes(self) -> float:
        """Size of the store, without checksums and indexes."""
        return self.images * self.sample_bytes / 1e9

    @property
    def verdict(self) -> str:
        """Whether the store pays back, in one sentence."""
        if self.online_share == 0:
            return "no --encoder is given: there is nothing to compare with"
        if self.payback_epochs > self.epochs:
            return (
                f"DOES NOT PAY: {self.epochs:g} epochs are planned, but encoding the tokens takes "
                f"{self.payback_epochs:.1f} epochs to pay back; run the encoder online"
            )
        saved = self.online_share - READING - self.attention_share
        gain = f"steps are {100 * saved:.0f} % faster"
        if saved < SMALL_GAIN:
            return (
                f"HARDLY PAYS in speed: {gain}, for {self.gigabytes:,.0f} GB; it may still pay by saving GPU memory "
                "and image decoding, and by removing differences between runs"
            )
        return f"PAYS: {gain}, and {self.epochs:g} epochs save {self.saved_hours:,.1f} h"

    def describe(self) -> str:
        """Return the plan as text."""
        lines = [
            f"{self.images:,} images of {self.sample_bytes:,} bytes each: {self.gigabytes:,.1f} GB",
            f"encoding, {self.where}: {self.encode_hours:,.2f} h if image decoding keeps up",
            *(f"  {cost.name}: {cost.hours:,.2f} h ({cost.origin})" for cost in self.costs),
        ]
        if self.online_share:
            lines += [
                f"training {self.model} for {self.epochs:g} epochs, on H100s (step time: {self.step_origin}):",
                f"  the encoder online adds {100 * self.online_share:.0f} % to a step, reading the store "
                f"{100 * READING:.1f} %",
                *([self._describe_attention()] if self.attention_share else []),
                f"  encoding the tokens pays back after {self.payback_epochs:.1f} epochs; "
                f"{self.epochs:g} epochs save {self.saved_hours:,.1f} h",
                f"  the store must deliver {self.read_bytes_per_second / 1e6:,.0f} MB/s of random samples; below "
                f"{self.break_even_bytes_per_second / 1e6:,.0f} MB/s the encoder online is faster",
            ]
        return "\n".join([*lines, self.verdict])

    def _describe_attention(self) -> str:
        return f"  recomputing attention from the store adds {100 * self.attention_share:.1f} % to a step"


def run(config: PlanConfig) -> PlanResult:
    """Compute a plan; ConfigError for unknown models, SourceError for a source without images."""
    if config.model not in model_names():
        raise ConfigError(f"--model is {config.model!r}: expected one of {', '.join(model_names())}")
    if config.token_latents:
        known = config.token_latents in config.encoder
        config.require(known, "token_latents", "expected one of the encoders of --encoder")
    else:
        check_vae(config.vae)
    for name in config.encoder:
        check_encoder_name(name)
    return _compute(config, config.images or _count_images(config))


def _compute(config: PlanConfig, images: int) -> PlanResult:
    from ..models.encoders import describe_encoder

    views = 2 if config.flip else 1
    table = {}
    if not config.token_latents:
        require_vae_resolution(config.vae, describe_vae(config.vae)[1], config.resolution)
        table = {config.vae: vae_seconds(config.vae, config.resolution)}
    table |= {name: encoder_seconds(name, config.resolution) for name in config.encoder}
    found, where = (_probe(config), _this_machine(config)) if config.probe else (table, "on H100s")
    costs = [
        Cost(name, images * views * seconds / config.gpus / 3600, origin) for name, (seconds, origin) in found.items()
    ]
    widths = tuple(describe_encoder(name, config.resolution).width for name in config.encoder)
    step, step_origin = step_seconds(config.model, *_latents_shape(config), widths or (768,))
    online = sum(table[name][0] for name in config.encoder if not _shares_network(name, config.encoder))
    encoding = sum(table[name][0] for name in config.encoder)
    attention = sum(attention_seconds(name, config.resolution) for name in config.encoder if is_block_input(name))
    saved = online - READING * step - attention
    sample_bytes = bytes_per_sample(config)
    view_bytes = sample_bytes / views
    return PlanResult(
        images=images,
        sample_bytes=sample_bytes,
        costs=costs,
        where=f"{where}, {config.gpus} GPUs" if config.gpus > 1 else where,
        model=config.model,
        epochs=config.epochs,
        step_origin=step_origin,
        online_share=online / step,
        attention_share=attention / step,
        payback_epochs=views * encoding / saved if saved > 0 else float("inf"),
        saved_hours=images * (config.epochs * saved - views * encoding) / config.gpus / 3600,
        read_bytes_per_second=config.gpus * view_bytes / step,
        break_even_bytes_per_second=config.gpus * view_bytes / (step + online),
    )


def _shares_network(name: str, encoders: Sequence[str]) -> bool:
    """Return whether the input of a block comes with the pass of another encoder, if encoders run online."""
    network = name.partition("@")[0]
    return is_block_input(name) and any(each.partition("@")[0] == network for each in encoders if each != name)


def _latents_shape(config: PlanConfig) -> tuple[int, int]:
    """Return side and channels of the latents."""
    if config.token_latents:
        from ..models.encoders import describe_encoder

        tokens = describe_encoder(config.token_latents, config.resolution)
        return math.isqrt(tokens.num_tokens), tokens.width
    channels, downsampling = describe_vae(config.vae)
    return config.resolution // downsampling, channels


def bytes_per_sample(config: PlanConfig) -> int:
    """Return the bytes of one image in the store, without checksums and indexes."""
    from ..models.encoders import describe_encoder
    from ..stores.codecs import make_codec

    total = 0 if config.token_latents else _latents_bytes(config)
    for name in config.encoder:
        info = describe_encoder(name, config.resolution)
        total += sum(array.sample_bytes for array in make_codec(config.codec, info.num_tokens, info.width).arrays)
        total += 2 * info.width * info.has_cls_token
    return total * (2 if config.flip else 1)


def _latents_bytes(config: PlanConfig) -> int:
    """Return the bytes of an image's moments, or of its fixed latents."""
    channels, downsampling = describe_vae(config.vae)
    pixels = channels * (config.resolution // downsampling) ** 2
    if config.vae == PIXELS:
        return pixels
    return 4 * pixels * (1 if is_fixed(config.vae) else 2)


def _count_images(config: PlanConfig) -> int:
    return (
        len(open_source(config.source, config.source_kind, config.source_options).index())
        if config.source
        else IMAGENET
    )


def _this_machine(config: PlanConfig) -> str:
    import torch

    from .runtime.device import choose_device

    device = choose_device(config.device)
    return f"on this machine's {torch.cuda.get_device_name(device) if device.type == 'cuda' else device.type}"


def _probe(config: PlanConfig) -> dict[str, tuple[float, str]]:
    """Measure the seconds per image of every model on this machine, with the weights and the code of `encode`."""
    import torch

    from .encoding.batch_size import CPU_BATCH
    from .encoding.loading import load_group_encoders
    from .runtime.device import choose_device

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
    shape = (PROBE_BATCH if on_gpu else CPU_BATCH, 3, config.resolution, config.resolution)
    crops = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    groups = {config.vae: latents_group(config.vae)} | {name: features_group(name) for name in config.encoder}
    seconds = {}
    for name, group in groups.items():
        (encoder,) = load_group_encoders(encoding, (group,), device, "fp16" if on_gpu else "fp32")
        seconds[name] = (_time(encoder, crops), "measured here")
    return seconds


def _time(encoder: Callable[[torch.Tensor], object], crops: torch.Tensor) -> float:
    """Return the seconds per image. Encoders end with a copy to the host, so no kernel is left running."""
    encoder(crops)
    start, batches = time.perf_counter(), 0
    while time.perf_counter() - start < PROBE_SECONDS:
        encoder(crops)
        batches += 1
    return (time.perf_counter() - start) / (batches * len(crops))
