"""The files of a VAE: known names, folders and Hugging Face repositories, and what a config says about the latents.

Imports no torch, so names can be checked before the work starts.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypedDict

from msgspec import Meta

from ..converter import read_json, shown, structure
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
_DEFAULT_CHANNELS = 4
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
            f"unknown VAE {shown(name)}; expected one of {', '.join(vae_names())}, a folder, or the owner/name of an "
            "AutoencoderKL on Hugging Face"
        )
    return found


_Number = Annotated[float, Meta(ge=-1e6, le=1e6)]
_Positive = Annotated[float, Meta(gt=0, le=1e6)]


class _Latents(TypedDict, total=False):
    """What a config says about the latents; diffusers reads the rest."""

    latent_channels: Annotated[int, Meta(ge=1, le=4096)]
    block_out_channels: Annotated[list[int], Meta(min_length=1, max_length=16)]
    scaling_factor: _Positive
    shift_factor: _Number | None
    latents_mean: list[_Number] | None
    latents_std: list[_Positive] | None


def read_config(path: Path) -> dict[str, Any]:
    """Read the config of an AutoencoderKL, without private entries; WeightsError for anything else."""
    try:
        config = read_json(path, WeightsError)
        found = config.get("_class_name", "AutoencoderKL")
        if found != "AutoencoderKL":
            raise WeightsError(f"{path}: expected a diffusers AutoencoderKL, found {shown(found)}")
        _latents(config, path)
    except WeightsError as error:
        raise WeightsError(f"VAE config {error}. Download it again") from error
    return {key: value for key, value in config.items() if not key.startswith("_")}


def _latents(config: Mapping[str, Any], path: Path) -> _Latents:
    """Return the entries about the latents; WeightsError if they have other types, or are out of their ranges."""
    stated = {name: config[name] for name in _Latents.__annotations__ if name in config}
    latents = structure(stated, _Latents, str(path), WeightsError)
    channels = latents.get("latent_channels", _DEFAULT_CHANNELS)
    for values in (latents.get("latents_mean"), latents.get("latents_std")):
        if values and len(values) != channels:
            raise WeightsError(f"{path}: expected {channels} numbers per channel of the latents, found {len(values)}")
    return latents


def shape_of(config: Mapping[str, Any], path: Path) -> tuple[int, int]:
    """Return a diffusers config's latent channels and downsampling: every block but the last halves the sides."""
    latents = _latents(config, path)
    blocks = latents.get("block_out_channels", [64])
    return latents.get("latent_channels", _DEFAULT_CHANNELS), 2 ** (len(blocks) - 1)


def scale_and_bias(config: Mapping[str, Any], path: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return scale and bias per channel, combined from a config's four numbers as diffusers' pipelines apply them."""
    latents = _latents(config, path)
    channels, factor = latents.get("latent_channels", _DEFAULT_CHANNELS), latents.get("scaling_factor", _DEFAULT_SCALE)
    mean = latents.get("latents_mean") or [latents.get("shift_factor") or 0.0] * channels
    scale = tuple(factor / deviation for deviation in latents.get("latents_std") or [1.0] * channels)
    bias = tuple(0.0 - center * gain for center, gain in zip(mean, scale, strict=True))  # 0.0 - x is never -0.0
    return scale, bias
