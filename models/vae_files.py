"""The files of a VAE: known names, folders, single files, Hugging Face repositories; what configs say about latents.

Imports no torch, so names can be checked before the work starts.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypedDict

from msgspec import Meta

from ..converter import read_json, shown, structure
from ..errors import ConfigError, WeightsError
from .autoencoder_classes import class_of
from .ldm_names import config_from_shapes, ldm_tensors
from .weight_files import WeightsSource, download_weights, find_cached

_SHIPPED = Path(__file__).parent / "weights"
_SHIPPED_NAMES = ("tiny-kl-f8",)
PUBLISHED = {
    "sd-vae-ft-mse": "stabilityai/sd-vae-ft-mse",
    "sd-vae-ft-ema": "stabilityai/sd-vae-ft-ema",
}
_PUBLISHED_SHAPE = (4, 8)  # latent channels and downsampling of both
_CONFIG_FILE = "config.json"
_STEM = "diffusion_pytorch_model"
# In this order: whole files before files in parts, and full precision before half
_WEIGHTS_FILES = tuple(f"{_STEM}{variant}{ending}" for variant in ("", ".fp16") for ending in (".safetensors", ".bin"))
_INDEX_FILES = tuple(
    f"{_STEM}.{kind}.index{variant}.json" for variant in ("", ".fp16") for kind in ("safetensors", "bin")
)
_WEIGHTS = (*_WEIGHTS_FILES[:2], *_INDEX_FILES[:2], *_WEIGHTS_FILES[2:], *_INDEX_FILES[2:])
_PART = re.compile(r"[\w-]+(\.[\w-]+)*\.(safetensors|bin)")
_SINGLE_FILES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
PIXELS = "pixels"
PIXELS_SCALE, PIXELS_BIAS = (2 / 255,) * 3, (-1.0,) * 3  # levels to [-1, 1]
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(/[\w.-]+)*")


def vae_names() -> tuple[str, ...]:
    """Return the names that `load_vae` accepts in addition to Hugging Face names and folders."""
    return (*PUBLISHED, *_SHIPPED_NAMES, PIXELS)


def is_known_vae(name_or_path: str | Path) -> bool:
    """Return whether this is a known name, rather than that of a folder or of a repository on Hugging Face."""
    return str(name_or_path) in vae_names()


def describe_vae(name_or_path: str | Path) -> tuple[int, int]:
    """Return `(latent_channels, downsampling)` without loading weights. A Hugging Face name may download the config."""
    name = str(name_or_path)
    if name in PUBLISHED:
        return _PUBLISHED_SHAPE
    if name == PIXELS:
        return 3, 1
    return shape_of(config_of(name), name)


def is_fixed(name_or_path: str | Path) -> bool:
    """Return whether a VAE's latents are not drawn from a distribution. A Hugging Face name may download the config."""
    name = str(name_or_path)
    return name == PIXELS or (name not in PUBLISHED and class_of(config_of(name), name)[1].is_fixed)


def latents_scale_and_bias(name_or_path: str | Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return scale and bias of the latents, one number per channel each, without loading weights.

    A Hugging Face name may download the config.

    Raises:
        ConfigError, WeightsError: the name is unknown, or the config is unavailable or unusable.
    """
    name = str(name_or_path)
    if name in PUBLISHED:
        return scale_and_bias({}, name)
    if name == PIXELS:
        return PIXELS_SCALE, PIXELS_BIAS
    return scale_and_bias(config_of(name), name)


def overflows_in_float16(name_or_path: str | Path) -> bool:
    """Return whether the config of a VAE requires float32 instead of float16: `force_upcast`, as for SDXL.

    Only the file's own entry counts: diffusers fills in True where a config has none, as for Stability AI's VAEs, which
    run in float16. A Hugging Face name may download the config.
    """
    name = str(name_or_path)
    return name not in (*PUBLISHED, PIXELS) and config_of(name).get("force_upcast") is True


def check_vae(name_or_path: str | Path) -> None:
    """Raise the errors of `load_vae` that can be found without torch and without a download.

    Raises:
        ConfigError: the name is unknown.
        WeightsError: a folder lacks the config or the weights.
    """
    name = str(name_or_path)
    if name == PIXELS or is_single_file(name):
        return
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


def find_weights(name: str) -> list[Path]:
    """Return the weights file of a VAE, or its parts, downloaded if necessary.

    Raises:
        ConfigError, WeightsError: there is none, or a part is missing.
    """
    if name in _SHIPPED_NAMES:
        return [_SHIPPED / f"{name}.safetensors"]
    local = Path(name).is_dir()
    found = _in_folder(Path(name), _WEIGHTS) if local else _from_hub(name, _WEIGHTS)
    if found.suffix != ".json":
        return [found]
    parts = _parts_in(found)
    if local:
        return [_in_folder(Path(name), (part,)) for part in parts]
    return [_from_hub(name, (part,)) for part in parts]


class _Index(TypedDict):
    """The parts of weights that are divided among files."""

    weight_map: dict[str, str]


def _parts_in(index: Path) -> list[str]:
    """Return the names of the files that an index lists."""
    values = {"weight_map": read_json(index, WeightsError).get("weight_map")}
    parts = sorted(set(structure(values, _Index, str(index), WeightsError)["weight_map"].values()))
    if not parts or not all(_PART.fullmatch(part) for part in parts):
        raise WeightsError(f"{index}: weight_map: expected names of files next to it, found {shown(parts)}")
    return parts


def is_single_file(name: str) -> bool:
    """Return whether a VAE is given as a file with all of its tensors, such as one of Stable Diffusion or VA-VAE."""
    return Path(name).suffix in _SINGLE_FILES and Path(name).is_file()


def config_of(name: str) -> dict[str, Any]:
    """Return the config of a VAE, without private entries but its class; downloaded if necessary.

    Raises:
        ConfigError, WeightsError: the name is unknown, or the config is unavailable or unusable.
    """
    if is_single_file(name):
        return config_from_shapes(ldm_tensors(_shapes_in(Path(name)), name), name)
    return read_config(find_config(name))


def _shapes_in(path: Path) -> Mapping[str, Any]:
    """Return objects with the shapes of a file's tensors; only the header of safetensors is read."""
    from .weight_files import read_checkpoint, read_safetensors_shapes, read_weights_file

    if path.suffix == ".safetensors":
        return read_safetensors_shapes(path)
    key = "state_dict" if "state_dict" in read_weights_file(path) else None
    return read_checkpoint(path, key)


def is_downloaded(name: str) -> bool:
    """Return whether loading a VAE needs no network; ConfigError for what cannot be a name."""
    if name == PIXELS or name in _SHIPPED_NAMES or Path(name).is_dir() or is_single_file(name):
        return True
    return all(any(map(find_cached, _hub_sources(name, files))) for files in ((_CONFIG_FILE,), _WEIGHTS))


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
        f"VAE folder {folder} has no {' or '.join(names[:2])}; expected an autoencoder of diffusers as save_pretrained "
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
            f"unknown VAE {shown(name)}; expected one of {', '.join(vae_names())}, a folder, a file, or the owner/name "
            "of an autoencoder on Hugging Face"
        )
    return found


_Number = Annotated[float, Meta(ge=-1e6, le=1e6)]
_Positive = Annotated[float, Meta(gt=0, le=1e6)]


_Channels = Annotated[int, Meta(ge=1, le=4096)]
_Levels = Annotated[list[int], Meta(min_length=1, max_length=16)]


class _Latents(TypedDict, total=False):
    """What a config says about the latents; diffusers reads the rest."""

    latent_channels: _Channels
    vq_embed_dim: _Channels | None
    z_dim: _Channels
    block_out_channels: _Levels
    down_block_out_channels: _Levels
    encoder_block_out_channels: _Levels
    temperal_downsample: Annotated[list[bool], Meta(min_length=1, max_length=16)]
    scaling_factor: _Positive
    shift_factor: _Number | None
    latents_mean: list[_Number] | None
    latents_std: list[_Positive] | None


def read_config(path: Path) -> dict[str, Any]:
    """Read the config of an autoencoder, without private entries but its class; WeightsError for other classes."""
    try:
        config = read_json(path, WeightsError)
        name, _ = class_of(config, str(path))
        _latents(config, path)
    except WeightsError as error:
        raise WeightsError(f"VAE config {error}. Download it again") from error
    return {key: value for key, value in config.items() if not key.startswith("_")} | {"_class_name": name}


def _latents(config: Mapping[str, Any], path: str | Path) -> _Latents:
    """Return the entries about the latents; WeightsError if they have other types, or are out of their ranges."""
    stated = {name: config[name] for name in _Latents.__annotations__ if name in config}
    latents = structure(stated, _Latents, str(path), WeightsError)
    channels = class_of(config, str(path))[1].num_channels(config)
    for values in (latents.get("latents_mean"), latents.get("latents_std")):
        if values and len(values) != channels:
            raise WeightsError(f"{path}: expected {channels} numbers per channel of the latents, found {len(values)}")
    return latents


def shape_of(config: Mapping[str, Any], path: str | Path) -> tuple[int, int]:
    """Return the latent channels and the downsampling of a config of diffusers."""
    _latents(config, path)
    kind = class_of(config, str(path))[1]
    return kind.num_channels(config), kind.downsampling(config)


def scale_and_bias(config: Mapping[str, Any], path: str | Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return scale and bias per channel, combined from a config's four numbers as diffusers' pipelines apply them."""
    latents, kind = _latents(config, path), class_of(config, str(path))[1]
    channels, factor = kind.num_channels(config), latents.get("scaling_factor", kind.default_scale)
    mean = latents.get("latents_mean") or [latents.get("shift_factor") or 0.0] * channels
    scale = tuple(factor / deviation for deviation in latents.get("latents_std") or [1.0] * channels)
    bias = tuple(0.0 - center * gain for center, gain in zip(mean, scale, strict=True))  # 0.0 - x is never -0.0
    return scale, bias
