"""The latent autoencoder: images to posterior moments, latents back to images.

Any diffusers `AutoencoderKL`: Stability's two by name, others by their Hugging Face repository or a local folder,
and `tiny-kl-f8`, a small one that ships with the package (see docs/vae.md).
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError, WeightsError
from .weight_files import WeightsSource, download_weights, read_checkpoint, weights_sha256

_SHIPPED = Path(__file__).parent / "weights"
_SHIPPED_NAMES = ("tiny-kl-f8",)
_PUBLISHED = {
    "sd-vae-ft-mse": "stabilityai/sd-vae-ft-mse",
    "sd-vae-ft-ema": "stabilityai/sd-vae-ft-ema",
}
_PUBLISHED_SHAPE = (4, 8)  # both of Stability's: latent channels, downsampling
_PUBLISHED_BLOCKS = {
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}
_CONFIG_FILE = "config.json"
_WEIGHTS_FILES = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(/[\w.-]+)*")
# Files written before diffusers 0.12, Stability's among them, name the attention's layers differently.
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
# What a diffusers config says beside the architecture: moments don't depend on it.
_NO_ARCHITECTURE = {"scaling_factor", "shift_factor", "latents_mean", "latents_std", "sample_size", "force_upcast"}
_PRECISIONS = {None: "float32", torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Vae:
    """A loaded autoencoder and the affine map between its latents and those that a diffusion model sees.

    A diffusion model works on `(mean + std · noise) · latents_scale + latents_bias`, one scale and one bias a
    channel (REPA's `sample_posterior`). `fingerprint` is JSON-able and says everything that moments depend on.
    """

    name: str
    latent_channels: int
    downsampling: int  # an image of R pixels has latents of R / downsampling
    latents_scale: tuple[float, ...]
    latents_bias: tuple[float, ...]
    fingerprint: dict[str, Any]
    device: torch.device
    dtype: torch.dtype | None  # of autocast; None for plain float32
    model: Any  # diffusers.AutoencoderKL, float32, on the device

    def __post_init__(self) -> None:
        for what, values in (("scale", self.latents_scale), ("bias", self.latents_bias)):
            if len(values) != self.latent_channels:
                raise ConfigError(
                    f"the latents' {what} has {len(values)} numbers: {self.name} has {self.latent_channels} channels"
                )
        if 0.0 in self.latents_scale:
            raise ConfigError(f"the latents' scale is {list(self.latents_scale)}: a channel times 0 can't be decoded")

    def with_scale(self, scale: Sequence[float], bias: Sequence[float]) -> "Vae":
        """Return the same autoencoder with another scale and bias, one number a channel each (ConfigError if not)."""
        return replace(self, latents_scale=tuple(map(float, scale)), latents_bias=tuple(map(float, bias)))

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Encode uint8 images [B, 3, R, R] to float32 moments [B, 2C, R / downsampling, R / downsampling].

        Moments are the posterior's mean and standard deviation, unscaled, as REPA's preprocessing stores them
        (`StabilityVAEEncoder`: pixels / 127.5 - 1). Raises ConfigError for another dtype, or a size that is no
        multiple of the downsampling.
        """
        self._check_images(images)
        pixels = images.to(self.device, torch.float32) / 127.5 - 1
        with self._autocast():
            parameters = self.model.encode(pixels).latent_dist.parameters
        mean, log_variance = parameters.float().chunk(2, dim=1)
        return torch.cat([mean, torch.exp(0.5 * log_variance.clamp(-30.0, 20.0))], dim=1).contiguous()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Decode scaled latents [B, C, h, w], floating, to uint8 images [B, 3, h · downsampling, w · downsampling].

        Levels are cut off to whole numbers, not rounded: `clamp(255 · (x + 1) / 2, 0, 255)` to uint8, as REPA's
        `generate.py` does, so that published figures are compared like with like.
        """
        if latents.ndim != 4 or latents.shape[1] != self.latent_channels:
            raise ConfigError(
                f"latents have shape {list(latents.shape)}: {self.name} decodes [B, {self.latent_channels}, h, w]"
            )
        scale, bias = (
            torch.tensor(values, device=self.device).view(1, -1, 1, 1)
            for values in (self.latents_scale, self.latents_bias)
        )
        unscaled = (latents.to(self.device, torch.float32) - bias) / scale
        with self._autocast():
            images = self.model.decode(unscaled).sample
        return torch.clamp(255.0 * ((images.float() + 1) / 2.0), 0, 255).to(torch.uint8).contiguous()

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.dtype or torch.bfloat16, enabled=self.dtype is not None)

    def _check_images(self, images: Tensor) -> None:
        found = f"images are {images.dtype} {list(images.shape)}"
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise ConfigError(f"{found}: expected uint8 [B, 3, R, R]")
        if any(side % self.downsampling for side in images.shape[2:]):
            raise ConfigError(f"{found}: {self.name} needs sides that are multiples of {self.downsampling} pixels")


def vae_names() -> tuple[str, ...]:
    """Return the names that `load_vae` knows beside hub names and folders."""
    return (*_PUBLISHED, *_SHIPPED_NAMES)


def load_vae(name_or_path: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> Vae:
    """Load an autoencoder by name, by Hugging Face repository (`owner/name` or `owner/name/vae`), or from a folder.

    `dtype` None or float32 computes in float32; float16 or bfloat16 run under autocast. Weights stay float32. Scale
    and bias come from the config as diffusers' pipelines use it: `(z - shift_factor) · scaling_factor`, or
    `(z - latents_mean) · scaling_factor / latents_std` where those are given. Raises WeightsError where files are
    missing, cannot be downloaded or do not fit each other, ConfigError for an unknown name or dtype.
    """
    if dtype not in _PRECISIONS:
        raise ConfigError(f"dtype is {dtype}: a VAE runs in float32, float16 or bfloat16")
    precision = "float32" if dtype is None else _PRECISIONS[dtype]
    name = str(name_or_path)
    config_path, weights_path = _find_config(name), _find_weights(name)
    model = _build(_read_config(config_path), config_path)
    _fill(model, weights_path)
    config = json.loads(json.dumps({k: v for k, v in model.config.items() if not k.startswith("_")}))
    channels, downsampling = _shape(config, config_path)
    scale, bias = _scale_and_bias(config, config_path)
    fingerprint = {
        "architecture": "AutoencoderKL",
        "config": {key: value for key, value in config.items() if key not in _NO_ARCHITECTURE},
        "weights_sha256": weights_sha256(model.state_dict()),
        "preprocessing": "pixels / 127.5 - 1",
        "precision": precision,
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
        dtype=None if precision == "float32" else dtype,
        model=model.to(device, memory_format=torch.channels_last),  # a third faster on CPUs
    )


def describe_vae(name_or_path: str | Path) -> tuple[int, int]:
    """Return `(latent_channels, downsampling)` without loading weights; a hub name may download its config."""
    name = str(name_or_path)
    if name in _PUBLISHED:
        return _PUBLISHED_SHAPE
    path = _find_config(name)
    return _shape(_read_config(path), path)


def create_vae_on_meta(name_or_path: str | Path) -> Any:
    """Build the network without memory for its parameters, to count operations; a hub name may download its config."""
    name = str(name_or_path)
    path = _SHIPPED / "no-file" if name in _PUBLISHED else _find_config(name)
    with torch.device("meta"):
        return _build(_PUBLISHED_BLOCKS if name in _PUBLISHED else _read_config(path), path)


def _find_config(name: str) -> Path:
    if name in _SHIPPED_NAMES:
        return _SHIPPED / f"{name}.json"
    if Path(name).is_dir():
        return _in_folder(Path(name), (_CONFIG_FILE,))
    return _from_hub(name, (_CONFIG_FILE,))


def _find_weights(name: str) -> Path:
    if name in _SHIPPED_NAMES:
        return _SHIPPED / f"{name}.safetensors"
    if Path(name).is_dir():
        return _in_folder(Path(name), _WEIGHTS_FILES)
    return _from_hub(name, _WEIGHTS_FILES)


def _in_folder(folder: Path, names: Sequence[str]) -> Path:
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise WeightsError(
        f"VAE folder {folder} has no {' or '.join(names)}: expected a diffusers AutoencoderKL as save_pretrained "
        f"writes it, {_CONFIG_FILE} and {_WEIGHTS_FILES[0]}"
    )


def _from_hub(name: str, files: Sequence[str]) -> Path:
    address = _PUBLISHED.get(name, name)
    if not _HUB_NAME.fullmatch(address):
        raise ConfigError(
            f"no VAE {name!r}: it is no folder, and the known names are {', '.join(vae_names())}; "
            "any AutoencoderKL on Hugging Face goes by owner/name"
        )
    owner, repo, *folders = address.split("/")
    prefix = "".join(f"{folder}/" for folder in folders)
    sources = [WeightsSource(repo=f"{owner}/{repo}", file=prefix + file) for file in files]
    try:
        return download_weights(name, sources)
    except WeightsError as error:
        tried = str(error).split(". Download one of these")[0]  # its remedy is for models of a single file
        raise WeightsError(
            f"{tried}. Get {_CONFIG_FILE} and {_WEIGHTS_FILES[0]} from https://huggingface.co/{owner}/{repo} where "
            "there is a network, and give the path of the folder that holds both in place of the name"
        ) from error


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise WeightsError(f"VAE config {path} cannot be read as JSON ({error}): download it again") from error
    kind = config.get("_class_name", "AutoencoderKL") if isinstance(config, dict) else type(config).__name__
    if kind != "AutoencoderKL":
        raise WeightsError(f"VAE config {path} describes {kind}: expected a diffusers AutoencoderKL")
    return {key: value for key, value in config.items() if not key.startswith("_")}


def _shape(config: Mapping[str, Any], path: Path) -> tuple[int, int]:
    """Return latent channels and downsampling of a diffusers config: every block but the last halves the sides."""
    channels, blocks = config.get("latent_channels", 4), config.get("block_out_channels", [64])
    if not isinstance(channels, int) or not isinstance(blocks, list):
        raise WeightsError(
            f"VAE config {path} has latent_channels {channels!r} and block_out_channels {blocks!r}: expected a whole "
            "number and a list; download it again"
        )
    return channels, 2 ** (len(blocks) - 1)


def _build(config: Mapping[str, Any], path: Path) -> Any:
    from diffusers import AutoencoderKL

    model_class: Any = AutoencoderKL
    try:
        return model_class(**config).eval().requires_grad_(False)
    # The constructor checks nothing, so a damaged value fails wherever it is used first.
    except Exception as error:
        raise WeightsError(f"VAE config {path} builds no AutoencoderKL ({error}): download it again") from error


def _fill(model: Any, path: Path) -> None:
    """Load the weights strictly: a tensor that is missing, left over or of another shape is an error."""
    held = {_current_name(name): tensor for name, tensor in read_checkpoint(path).items()}
    wanted = {name: tensor.shape for name, tensor in model.state_dict().items()}
    odd = sorted(held.keys() ^ wanted.keys()) or [name for name in wanted if held[name].shape != wanted[name]]
    if odd:
        raise WeightsError(
            f"weights file {path} does not fit the config beside it: {len(odd)} tensors are missing, left over or of "
            f"another shape, the first being {odd[0]}; download both files again from one place"
        )
    model.load_state_dict(held)


def _current_name(name: str) -> str:
    parts = name.split(".")
    if "attentions" in parts:
        parts = [_OLD_ATTENTION.get(part, part) for part in parts]
    return ".".join(parts)


def _scale_and_bias(config: Mapping[str, Any], path: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return scale and bias a channel, as diffusers' pipelines apply a config's four numbers."""
    channels = config["latent_channels"]
    try:
        mean = config["latents_mean"] or [config["shift_factor"] or 0.0] * channels
        std = config["latents_std"] or [1.0] * channels
        scale = tuple(config["scaling_factor"] / deviation for deviation in std)
        bias = tuple(0.0 - center * gain for center, gain in zip(mean, scale, strict=True))  # 0.0 -: no minus zero
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise WeightsError(f"VAE config {path} states no usable scale of the latents ({error})") from error
    return scale, bias
