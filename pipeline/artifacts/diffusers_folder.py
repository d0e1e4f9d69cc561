"""The folder that diffusers loads: transformer, scheduler and VAE of its own classes, and a pipeline, `pipeline.py`."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...converter import read_json
from ...errors import CheckpointError, WeightsError
from ...models.sit.config import SiTConfig
from ...models.vae_files import require_trusted
from ...stores.files import write_json

if TYPE_CHECKING:
    from .checkpoints import TrainedModel

_INDEX, _PIPELINE = "model_index.json", "pipeline.py"
_AUTOENCODER = "AutoencoderKL"


def require_exportable(trained: TrainedModel) -> SiTConfig:
    """Return the config of a model that diffusers can sample; raise CheckpointError for any other."""
    from ...models.sit.diffusers_weights import require_convertible

    config, store = trained.model.config, trained.store
    if not isinstance(config, SiTConfig):
        name = type(config).__name__.removesuffix("Config")
        raise CheckpointError(f"--to diffusers exports SiT only, found {name}: use --to safetensors")
    require_convertible(config)
    if store.token_latents is not None:
        raise CheckpointError("--to diffusers needs the latents of a VAE, found encoder tokens: use --to safetensors")
    if trained.config.time_shift != 1:
        raise CheckpointError(
            f"--to diffusers: the sampler's times are shifted by {trained.config.time_shift:g}, expected no shift: "
            "use --to safetensors"
        )
    return config


def write_diffusers(folder: Path, trained: TrainedModel) -> None:
    """Write the files of a pipeline to a folder.

    Raises:
        CheckpointError: the model is none that diffusers can sample.
        WeightsError: the VAE is unavailable, or of another class.
    """
    from diffusers import DiTTransformer2DModel, FlowMatchEulerDiscreteScheduler

    from ...models.sit import diffusers_pipeline
    from ...models.sit.diffusers_weights import TIME_SCALE, transformer_config, transformer_weights

    config = require_exportable(trained)
    transformer: Any = DiTTransformer2DModel(**transformer_config(config))
    transformer.load_state_dict(transformer_weights(config, trained.model.state_dict()))
    pipeline: Any = diffusers_pipeline.SiTPipeline(
        transformer.eval(),
        _vae(trained),
        FlowMatchEulerDiscreteScheduler(num_train_timesteps=TIME_SCALE),
        dict(enumerate(trained.store.class_names)) or None,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    shutil.copyfile(str(diffusers_pipeline.__file__), folder / _PIPELINE)
    names = [Path(_PIPELINE).stem, type(pipeline).__name__]
    write_json(folder / _INDEX, read_json(folder / _INDEX) | {"_class_name": names})


def _vae(trained: TrainedModel) -> Any:
    """Return the VAE, of diffusers' class, with the scale and shift of the latents in its config."""
    import torch

    from ...models.vae import Vae, load_vae

    store = trained.store
    loaded = load_vae(require_trusted(store.vae))
    model: Any = loaded.model if isinstance(loaded, Vae) else None
    found = "no autoencoder" if model is None else type(model).__name__
    if found != _AUTOENCODER:
        raise WeightsError(f"--to diffusers needs an {_AUTOENCODER}, but {store.vae} is {found}: use --to safetensors")
    model.to(memory_format=torch.contiguous_format)
    model.register_to_config(**_normalization(store.latents_scale, store.latents_bias))
    return model


def _normalization(scale: Sequence[float], bias: Sequence[float]) -> dict[str, Any]:
    """Return the entries of diffusers for latents `z * scale + bias`: `(z - shift) * factor`, or per channel."""
    shifts = [0.0 - each / factor for each, factor in zip(bias, scale, strict=True)]
    if len(set(scale)) == len(set(shifts)) == 1:
        entries: dict[str, Any] = {"scaling_factor": scale[0], "shift_factor": shifts[0] or None}
        return entries | {"latents_mean": None, "latents_std": None}
    entries = {"scaling_factor": 1.0, "shift_factor": None}
    return entries | {"latents_mean": shifts, "latents_std": [1 / factor for factor in scale]}
