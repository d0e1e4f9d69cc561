"""Decoders of tokens in diffusers' format: of an `AutoencoderRAE`, in a folder or on Hugging Face."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypedDict

from msgspec import Meta

from ..converter import read_json, shown, structure
from ..errors import ConfigError, WeightsError
from .weight_files import WeightsSource, download_weights, read_checkpoint

if TYPE_CHECKING:
    from .rae_decoder import RaeDecoder

_CONFIG_FILE, _WEIGHTS_FILE = "config.json", "diffusion_pytorch_model.safetensors"
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(/[\w.-]+)*")
_IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}

_Size = Annotated[int, Meta(ge=1, le=1 << 16)]
_Colors = Annotated[list[Annotated[float, Meta(ge=0, le=1)]], Meta(min_length=3, max_length=3)]


class _Config(TypedDict, total=False):
    """The entries of a config that the decoder depends on; defaults are diffusers' own."""

    encoder_hidden_size: _Size
    encoder_patch_size: _Size
    encoder_input_size: _Size
    decoder_hidden_size: _Size
    decoder_num_hidden_layers: _Size
    decoder_num_attention_heads: _Size
    decoder_intermediate_size: _Size
    patch_size: _Size
    encoder_norm_mean: _Colors | None
    encoder_norm_std: _Colors | None


_DEFAULTS = {
    "encoder_hidden_size": 768,
    "encoder_patch_size": 14,
    "encoder_input_size": 224,
    "decoder_hidden_size": 512,
    "decoder_num_hidden_layers": 8,
    "decoder_num_attention_heads": 16,
    "decoder_intermediate_size": 2048,
    "patch_size": 16,
}


def load_rae_decoder(name: str) -> RaeDecoder:
    """Load the decoder of an `AutoencoderRAE` on the CPU, in evaluation mode. Its encoder is not loaded.

    Args:
        name: a folder, or the owner/name of a Hugging Face repository.

    Raises:
        ConfigError: the name is neither.
        WeightsError: a file is missing or damaged, or belongs to another model.
    """
    from .rae_decoder import RaeDecoder

    config, weights = (_find(name, file) for file in (_CONFIG_FILE, _WEIGHTS_FILE))
    settings = _read_config(config)
    grid = settings["encoder_input_size"] // settings["encoder_patch_size"]
    sizes = {key: value for key, value in settings.items() if key.startswith("decoder_")}
    sizes |= {"hidden_size": settings["encoder_hidden_size"], "patch_size": settings["patch_size"]}
    sizes |= {"num_patches": grid**2, "image_size": grid * settings["patch_size"]}
    image_mean = settings.get("encoder_norm_mean") or _IMAGENET["mean"]
    image_std = settings.get("encoder_norm_std") or _IMAGENET["std"]
    try:
        decoder = RaeDecoder(sizes, image_mean, image_std)
    except (ValueError, RuntimeError) as error:  # sizes that do not fit each other
        raise WeightsError(f"{config} describes no decoder ({error}). Download it again") from error
    decoder.load(read_checkpoint(weights), str(weights))
    return decoder.eval().requires_grad_(False)


def patch_size_of(name: str) -> int:
    """Return the pixels per side that each token becomes, without loading weights. A name may download the config."""
    return int(_read_config(_find(name, _CONFIG_FILE))["patch_size"])


def check_rae_decoder(name: str) -> None:
    """Raise the errors of `load_rae_decoder` that can be found without torch and without a download."""
    if Path(name).is_dir():
        _read_config(_find(name, _CONFIG_FILE))
        _find(name, _WEIGHTS_FILE)
    else:
        _hub_name(name)


def _read_config(path: Path) -> dict[str, Any]:
    config = read_json(path, WeightsError)
    found = config.get("_class_name")
    if found != "AutoencoderRAE":
        raise WeightsError(f"{path}: expected a diffusers AutoencoderRAE, found {shown(found)}")
    stated = {key: config[key] for key in _Config.__annotations__ if key in config}
    return _DEFAULTS | structure(stated, _Config, str(path), WeightsError)


def _find(name: str, file: str) -> Path:
    if not Path(name).is_dir():
        owner, repo, *folders = _hub_name(name).split("/")
        return download_weights(name, [WeightsSource(repo=f"{owner}/{repo}", file="/".join([*folders, file]))])
    path = Path(name) / file
    if not path.is_file():
        raise WeightsError(f"{name} has no {file}; expected the folder of a diffusers AutoencoderRAE")
    return path


def _hub_name(name: str) -> str:
    if Path(name).is_file():
        raise ConfigError(
            f"{name} is a file: expected the folder of a diffusers AutoencoderRAE; convert RAE's own files with "
            "scripts/convert_rae_to_diffusers.py of diffusers"
        )
    if not _HUB_NAME.fullmatch(name):
        raise ConfigError(
            f"{shown(name)} is no decoder: expected a folder, or the owner/name of an AutoencoderRAE on Hugging Face"
        )
    return name
