"""Autoencoders: images to posterior moments or to latents, and latents back to images.

Those of diffusers whose latents are a grid of an image: Stability AI's two by name, others by their Hugging Face
repository, a local folder or a file, and `tiny-kl-f8`, a small one that ships with the package (docs/vae.md).
"""

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import ConfigError, NonFiniteError, WeightsError, first_line
from .autoencoder_classes import AutoencoderClass, class_of
from .ldm_names import diffusers_names, ldm_tensors
from .pixels import Pixels
from .precision import autocast_dtype, precision_name, retry_in_float32, rows_not_finite
from .vae_files import (
    PIXELS,
    PUBLISHED,
    config_of,
    describe_vae,
    find_weights,
    is_single_file,
    scale_and_bias,
    shape_of,
    vae_names,
)
from .weight_files import read_checkpoint, read_weights_file, weights_sha256

__all__ = ["Vae", "create_vae_on_meta", "describe_vae", "load_vae", "vae_names"]

_PUBLISHED_ARCHITECTURE = {  # of both published VAEs
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}
# Files written before diffusers 0.12, including Stability AI's, use other names for the attention layers.
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_COPIED_ENTRIES = {"block_out_channels", "force_upcast"}
# Entries of a diffusers config that do not affect the moments, so they are left out of the fingerprint.
_NO_ARCHITECTURE = {"scaling_factor", "shift_factor", "latents_mean", "latents_std", "sample_size", "force_upcast"}


class EncodedMoments(NamedTuple):
    """Moments of a batch, and the positions of its images that overflowed in half precision."""

    moments: Tensor
    in_float32: list[int]  # these were encoded again, in float32


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Vae:
    """A loaded VAE and the affine map from its latents to those that a diffusion model is trained on.

    The diffusion model is trained on `(mean + std · noise) · latents_scale + latents_bias`, with one scale and one bias
    per channel (REPA's `sample_posterior`). `fingerprint` can be stored as JSON and holds everything that the moments
    depend on.
    """

    name: str
    latent_channels: int
    downsampling: int  # an image of R pixels has latents of R / downsampling
    latents_scale: tuple[float, ...]
    latents_bias: tuple[float, ...]
    fingerprint: dict[str, Any]
    device: torch.device
    dtype: torch.dtype | None  # of autocast; None for plain float32
    model: Any  # of a class of diffusers, float32, on the device
    kind: AutoencoderClass

    @property
    def is_fixed(self) -> bool:
        """Whether `encode` returns latents instead of moments to draw them from."""
        return self.kind.is_fixed

    def __post_init__(self) -> None:
        for field, values in (("scale", self.latents_scale), ("bias", self.latents_bias)):
            if len(values) != self.latent_channels:
                raise ConfigError(
                    f"latents {field} of {self.name}: expected {self.latent_channels} numbers, one per channel, "
                    f"found {len(values)}"
                )
        if 0.0 in self.latents_scale:
            raise ConfigError(f"latents scale {list(self.latents_scale)} contains 0, which decoding divides by")

    def with_scale(self, scale: Sequence[float], bias: Sequence[float]) -> "Vae":
        """Return the same VAE with another scale and bias, one number per channel each.

        Raises:
            ConfigError: the number of values differs from the number of channels, or a scale is 0.
        """
        return replace(self, latents_scale=tuple(map(float, scale)), latents_bias=tuple(map(float, bias)))

    def encode(self, images: Tensor) -> Tensor:
        """Encode images to posterior moments, or to latents if the autoencoder `is_fixed`.

        An image that overflows in half precision is encoded in float32.

        Args:
            images: uint8 [B, 3, R, R], with R a multiple of the downsampling.

        Returns:
            Float32 [B, 2C, R / downsampling, R / downsampling]: the posterior's mean and standard deviation, unscaled,
            as REPA's preprocessing stores them (`StabilityVAEEncoder`: pixels / 127.5 - 1); or latents, [B, C, …].

        Raises:
            ConfigError: the images have another dtype, shape or size.
            WeightsError: moments are not finite in float32 either.
        """
        return self.encode_checked(images).moments

    @torch.no_grad()
    def encode_checked(self, images: Tensor) -> EncodedMoments:
        """Encode images like `encode`, and also return which of them overflowed."""
        self._check_images(images)
        pixels = images.to(self.device, torch.float32) / 127.5 - 1
        # before the variances are computed, as these are clamped: infinity would become a finite number
        parameters, in_float32 = retry_in_float32(self._encode, pixels, self.dtype)
        if broken := rows_not_finite(parameters):
            raise WeightsError(
                f"VAE {self.name}: the moments of {len(broken)} of {len(images)} images are not finite in float32: its "
                "weights are damaged, download them again"
            )
        if self.is_fixed:
            return EncodedMoments(parameters.contiguous(), in_float32)
        mean, log_variance = parameters.chunk(2, dim=1)
        moments = torch.cat([mean, torch.exp(0.5 * log_variance.clamp(-30.0, 20.0))], dim=1).contiguous()
        return EncodedMoments(moments, in_float32)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Decode scaled latents to images. Latents that overflow in half precision are decoded in float32.

        Args:
            latents: [B, C, h, w] of any floating dtype, with scale and bias applied.

        Returns:
            Uint8 [B, 3, h · downsampling, w · downsampling]. Levels are truncated, not rounded:
            `clamp(255 · (x + 1) / 2, 0, 255)` to uint8 as in REPA's `generate.py`, so that metrics are comparable with
            published ones.

        Raises:
            ConfigError: the latents have another shape.
            NonFiniteError: latents, or decoded images, are NaN or infinite; as uint8 they would be black.
        """
        if latents.ndim != 4 or latents.shape[1] != self.latent_channels:
            raise ConfigError(
                f"latents have shape {list(latents.shape)}; {self.name} decodes [B, {self.latent_channels}, h, w]"
            )
        scale, bias = (
            torch.tensor(values, device=self.device).view(1, -1, 1, 1)
            for values in (self.latents_scale, self.latents_bias)
        )
        unscaled = (latents.to(self.device, torch.float32) - bias) / scale
        images, _ = retry_in_float32(self._decode, unscaled, self.dtype)
        if broken := rows_not_finite(images):
            cause = "latents" if rows_not_finite(latents) else f"images decoded by VAE {self.name}"
            raise NonFiniteError(
                f"{len(broken)} of {len(images)} {cause} are NaN or infinite, first number {broken[0]}"
            )
        return torch.clamp(255.0 * ((images + 1) / 2.0), 0, 255).to(torch.uint8).contiguous()

    def _encode(self, pixels: Tensor) -> Tensor:
        encoded: Any = getattr(self.model.encode(self._framed(pixels)), self.kind.output)
        parameters: Tensor = encoded if self.is_fixed else encoded.parameters
        return parameters.squeeze(2) if self.kind.has_frames else parameters

    def _decode(self, unscaled: Tensor) -> Tensor:
        images: Tensor = self.model.decode(self._framed(unscaled)).sample
        return images.squeeze(2) if self.kind.has_frames else images

    def _framed(self, images: Tensor) -> Tensor:
        return images.unsqueeze(2) if self.kind.has_frames else images

    def _check_images(self, images: Tensor) -> None:
        found = f"images are {images.dtype} {list(images.shape)}"
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise ConfigError(f"{found}; expected torch.uint8 [B, 3, R, R]")
        if any(side % self.downsampling for side in images.shape[2:]):
            raise ConfigError(f"{found}; {self.name} needs sides that are multiples of {self.downsampling} pixels")


def load_vae(
    name_or_path: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
) -> Vae | Pixels:
    """Load a VAE; `pixels` stands for none.

    Scale and bias are taken from the config, as diffusers' pipelines apply it: `(z - shift_factor) · scaling_factor`,
    or `(z - latents_mean) · scaling_factor / latents_std` where those are given.

    Args:
        name_or_path: one of `vae_names()`, a Hugging Face repository (`owner/name` or `owner/name/vae`), a folder, or a
            file with the names of latent diffusion.
        device: where the VAE runs.
        dtype: None or float32 for float32; float16 or bfloat16 for autocast with float32 weights.

    Raises:
        WeightsError: files are missing, cannot be downloaded or do not match each other.
        ConfigError: the name is unknown, or the VAE cannot run in `dtype`.
    """
    dtype = autocast_dtype(dtype, "a VAE")
    name = str(name_or_path)
    if name == PIXELS:
        return Pixels()
    stated = config_of(name)
    architecture, kind = class_of(stated, name)
    model = _build(stated, name)
    _load_weights(model, name)
    config = json.loads(json.dumps({k: v for k, v in model.config.items() if not k.startswith("_")}))
    channels, downsampling = shape_of(stated, name)
    scale, bias = scale_and_bias(config | {"_class_name": architecture}, name)
    fingerprint = {
        "architecture": architecture,
        "config": {key: value for key, value in config.items() if key not in _NO_ARCHITECTURE},
        "weights_sha256": weights_sha256(model.state_dict()),
        "preprocessing": "pixels / 127.5 - 1",
        "precision": precision_name(dtype),
    }
    device = torch.device(device)
    return Vae(
        name=name,
        latent_channels=channels,
        downsampling=downsampling,
        latents_scale=scale,
        latents_bias=bias,
        fingerprint=fingerprint,
        device=device,
        dtype=dtype,
        model=model.to(device) if kind.has_frames else model.to(device, memory_format=torch.channels_last),  # faster
        kind=kind,
    )


def create_vae_on_meta(name_or_path: str | Path) -> Any:
    """Build the network on the meta device, to count operations. A Hugging Face name may download the config."""
    name = str(name_or_path)
    with torch.device("meta"):
        return _build(_PUBLISHED_ARCHITECTURE if name in PUBLISHED else config_of(name), name)


def _build(config: Mapping[str, Any], name: str) -> Any:
    import diffusers

    architecture, _ = class_of(config, name)
    model_class: Any = getattr(diffusers, architecture)
    # some classes write entries of AutoencoderKL into their config that they do not accept themselves
    left_out = {"_class_name"} | (_COPIED_ENTRIES - inspect.signature(model_class.__init__).parameters.keys())
    try:
        network = model_class(**{key: value for key, value in config.items() if key not in left_out})
        return network.eval().requires_grad_(False)
    # The constructor validates nothing, so an invalid value can raise anything, wherever it is first used.
    except Exception as error:
        raise WeightsError(
            f"the config of VAE {name} does not build an {architecture} ({first_line(error)}). Download it again"
        ) from error


def _load_weights(model: Any, name: str) -> None:
    """Load the weights strictly: missing tensors, unexpected tensors and other shapes are errors."""
    if is_single_file(name):
        path = Path(name)
        key = "state_dict" if "state_dict" in read_weights_file(path) else None
        tensors = diffusers_names(ldm_tensors(read_checkpoint(path, key), path))
    else:
        files = find_weights(name)
        path = files[0]
        tensors = {_current_name(key): value for each in files for key, value in read_checkpoint(each).items()}
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    misfits = sorted(tensors.keys() ^ shapes.keys()) or [n for n in shapes if tensors[n].shape != shapes[n]]
    if misfits:
        raise WeightsError(
            f"weights file {path} does not match the config next to it: {len(misfits)} tensor(s) missing, unexpected "
            f"or of another shape, the first being {misfits[0]}. Download both files again from the same place"
        )
    model.load_state_dict(tensors)


def _current_name(name: str) -> str:
    parts = name.split(".")
    if "attentions" in parts:
        parts = [_OLD_ATTENTION.get(part, part) for part in parts]
    return ".".join(parts)
