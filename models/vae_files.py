"""The files of a VAE: known names, folders and Hugging Face repositories, and what a config says about the latents.

Imports no torch, so names can be checked before the work starts.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError, WeightsError
from .weight_files import WeightsSource, download_weights, find_cached

_SHIPPED = Path(__file__).parent / "weights"
_SHIPPED_NAMES = ("tiny-kl-f8",)
PUBLISHED = {
    "sd-vae-ft-mse": "stabilityai/sd-vae-ft-mse",
    "sd-vae-ft-ema": "stabilityai/sd-vae-ft-ema",
}
_PUBLISHED_SHAPE = (4, 8)  # latent channels and downsampling of both
_DEFAULT_SCALE = 0.18215  # that of Stable Diffusion; of both published VAEs, and of configs that do not state one
_CONFIG_FILE = "config.json"
_WEIGHTS_FILES = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(/[\w.-]+)*")


def vae_names() -> tuple[str, ...]:
    """Return the names that `load_vae` accepts in addition to Hugging Face names and folders."""
    return (*PUBLISHED, *_SHIPPED_NAMES)


def is_known_vae(name_or_path: str | Path) -> bool:
    """Return whether this is a known name, rather than that of a folder or of a repository on Hugging Face."""
    return str(name_or_path) in vae_names()


def describe_vae(name_or_path: str | Path) -> tuple[int, int]:
    """Return `(latent_channels, downsampling)` without loading weights. A Hugging Face name may download the config."""
    name = str(name_or_path)
    if name in PUBLISHED:
        return _PUBLISHED_SHAPE
    path = find_config(name)
    return shape_of(read_config(path), path)


def latents_scale_and_bias(name_or_path: str | Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return scale and bias of the latents, one number per channel each, without loading weights.

    A Hugging Face name may download the config.

    Raises:
        ConfigError, WeightsError: the name is unknown, or the config is unavailable or unusable.
    """
    name = str(name_or_path)
    if name in PUBLISHED:
        return scale_and_bias({}, Path(name))
    path = find_config(name)
    return scale_and_bias(read_config(path), path)


def overflows_in_float16(name_or_path: str | Path) -> bool:
    """Return whether the config of a VAE requires float32 instead of float16: `force_upcast`, as for SDXL.

    Only the file's own entry counts: diffusers fills in True where a config has none, as for Stability AI's VAEs, which
    run in float16. A Hugging Face name may download the config.
    """
    name = str(name_or_path)
    return name not in PUBLISHED and read_config(find_config(name)).get("force_upcast") is True


def check_vae(name_or_path: str | Path) -> None:
    """Raise the errors of `load_vae` that can be found without torch and without a download.

    Raises:
        ConfigError: the name is unknown.
        WeightsError: a folder lacks the config or the weights.
    """
    name = str(name_or_path)
    if name in _SHIPPED_NAMES or Path(name).is_dir():
        find_config(name)
        find_weights(name)
    else:
        _hub_name(name)


def require_vae_resolution(name: str, downsampling: int, resolution: int) -> None:
    """Raise ConfigError unless the VAE turns images of this size into latents of a whole number of pixels."""
    if resolution % downsampling:
        below = resolution // downsampling * downsampling
        raise ConfigError(
            f"{name} does not accept images of {resolution} pixels: it needs a multiple of {downsampling}, such as "
            f"{below or downsampling} or {below + downsampling}"
        )


def find_config(name: str) -> Path:
    """Return the config file of a VAE, downloaded if necessary; ConfigError or WeightsError if there is none."""
    if name in _SHIPPED_NAMES:
        return _SHIPPED / f"{name}.json"
    if Path(name).is_dir():
        return _in_folder(Path(name), (_CONFIG_FILE,))
    return _from_hub(name, (_CONFIG_FILE,))


def find_weights(name: str) -> Path:
    """Return the weights file of a VAE, downloaded if necessary; ConfigError or WeightsError if there is none."""
    if name in _SHIPPED_NAMES:
        return _SHIPPED / f"{name}.safetensors"
    if Path(name).is_dir():
        return _in_folder(Path(name), _WEIGHTS_FILES)
    return _from_hub(name, _WEIGHTS_FILES)


def is_downloaded(name: str) -> bool:
    """Return whether loading a VAE needs no network; ConfigError for what cannot be a name."""
    if name in _SHIPPED_NAMES or Path(name).is_dir():
        return True
    return all(any(map(find_cached, _hub_sources(name, files))) for files in ((_CONFIG_FILE,), _WEIGHTS_FILES))


def require_trusted(name: str) -> str:
    """Return the VAE that a store or checkpoint names; only published ones are downloaded for no other reason.

    Raises:
        WeightsError: it is neither one of the published ones, nor on this machine.
    """
    if name not in PUBLISHED and not is_downloaded(name):
        raise WeightsError(
            f"the store or checkpoint names the VAE {name}, which is neither one of {', '.join(PUBLISHED)} nor on this "
            f"machine: if you trust it, download it with 'hf download', or pass --vae {name} to 'repa-pipe sample'"
        )
    return name


def _in_folder(folder: Path, names: Sequence[str]) -> Path:
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise WeightsError(
        f"VAE folder {folder} has no {' or '.join(names)}; expected a diffusers AutoencoderKL as save_pretrained "
        f"writes it: {_CONFIG_FILE} and {_WEIGHTS_FILES[0]}"
    )


def _from_hub(name: str, files: Sequence[str]) -> Path:
    sources = _hub_sources(name, files)
    remedy = (
        f"Download {_CONFIG_FILE} and {_WEIGHTS_FILES[0]} from https://huggingface.co/{sources[0].repo} on a machine "
        "with network access and pass the path of the folder that holds both instead of the name"
    )
    return download_weights(name, sources, remedy)


def _hub_sources(name: str, files: Sequence[str]) -> list[WeightsSource]:
    owner, repo, *folders = _hub_name(name).split("/")
    prefix = "".join(f"{folder}/" for folder in folders)
    return [WeightsSource(repo=f"{owner}/{repo}", file=prefix + file) for file in files]


def _hub_name(name: str) -> str:
    found = PUBLISHED.get(name, name)
    if not _HUB_NAME.fullmatch(found):
        raise ConfigError(
            f"unknown VAE {name!r}; expected one of {', '.join(vae_names())}, a folder, or the owner/name of an "
            "AutoencoderKL on Hugging Face"
        )
    return found


def read_config(path: Path) -> dict[str, Any]:
    """Read the config of an AutoencoderKL, without private entries; WeightsError for anything else."""
    try:
        config = json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise WeightsError(f"VAE config {path} cannot be read as JSON ({error}). Download it again") from error
    found = config.get("_class_name", "AutoencoderKL") if isinstance(config, dict) else type(config).__name__
    if found != "AutoencoderKL":
        raise WeightsError(f"VAE config {path}: expected a diffusers AutoencoderKL, found {found}")
    return {key: value for key, value in config.items() if not key.startswith("_")}


def shape_of(config: Mapping[str, Any], path: Path) -> tuple[int, int]:
    """Return a diffusers config's latent channels and downsampling: every block but the last halves the sides."""
    channels, blocks = config.get("latent_channels", 4), config.get("block_out_channels", [64])
    if not isinstance(channels, int) or not isinstance(blocks, list):
        raise WeightsError(
            f"VAE config {path}: expected an integer latent_channels and a list block_out_channels, found "
            f"{channels!r} and {blocks!r}. Download it again"
        )
    return channels, 2 ** (len(blocks) - 1)


def scale_and_bias(config: Mapping[str, Any], path: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return scale and bias per channel, combined from a config's four numbers as diffusers' pipelines apply them."""
    channels, factor = config.get("latent_channels", 4), config.get("scaling_factor", _DEFAULT_SCALE)
    try:
        mean = config.get("latents_mean") or [config.get("shift_factor") or 0.0] * channels
        std = config.get("latents_std") or [1.0] * channels
        scale = tuple(factor / deviation for deviation in std)
        bias = tuple(0.0 - center * gain for center, gain in zip(mean, scale, strict=True))  # 0.0 - x is never -0.0
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise WeightsError(f"VAE config {path} has no usable latents scale ({error})") from error
    return scale, bias
