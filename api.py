"""The commands as functions, and the model of a checkpoint: what the package's root exports beside classes.

Every function imports its stage when it is called, so that importing this module does not load torch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from .config import Config, EncodeConfig, EvaluateConfig, SampleConfig, TrainConfig

if TYPE_CHECKING:
    import torch

    from .pipeline.artifacts.checkpoints import TrainedModel
    from .pipeline.encode import EncodeResult
    from .pipeline.evaluate import EvaluateResult
    from .pipeline.sample import SampleResult
    from .pipeline.train import TrainResult

C = TypeVar("C", bound=Config)


def encode(config: EncodeConfig | None = None, /, **settings: Any) -> EncodeResult:
    """Encode images into a store, as `repa-pipe encode` does. A finished store is left unchanged.

    Args:
        config: the settings.
        **settings: the fields of `EncodeConfig`, instead of `config`.

    Returns:
        The summary that the command prints. Shards that failed in every attempt are listed in `failed`.

    Raises:
        ConfigError, SourceError, WeightsError: the settings, the source or the weights are unusable.
        StoreError: the store holds other images, or too many images are broken.
    """
    from .pipeline import encode as stage

    return stage.run(_config_of(EncodeConfig, config, settings))


def train(config: TrainConfig | None = None, /, **settings: Any) -> TrainResult:
    """Train SiT from a store, as `repa-pipe train` does: from the last checkpoint of the run, if there is one.

    Args:
        config: the settings.
        **settings: the fields of `TrainConfig`, instead of `config`.

    Returns:
        The run folder, the last checkpoint and its step.

    Raises:
        ConfigError, StoreError, CheckpointError: the settings, the store or the checkpoint are unusable.
    """
    from .pipeline import train as stage

    return stage.run(_config_of(TrainConfig, config, settings))


def sample(config: SampleConfig | None = None, /, **settings: Any) -> SampleResult:
    """Generate images from a checkpoint, as `repa-pipe sample` does.

    Args:
        config: the settings.
        **settings: the fields of `SampleConfig`, instead of `config`.

    Returns:
        The paths of the images and of the grid, the number of images, and the step of the checkpoint.

    Raises:
        ConfigError, CheckpointError, WeightsError: the settings, the checkpoint or the VAE are unusable.
    """
    from .pipeline import sample as stage

    return stage.run(_config_of(SampleConfig, config, settings))


def evaluate(config: EvaluateConfig | None = None, /, **settings: Any) -> EvaluateResult:
    """Compute FID, precision, recall and other metrics of images, as `repa-pipe evaluate` does.

    Args:
        config: the settings.
        **settings: the fields of `EvaluateConfig`, instead of `config`.

    Returns:
        The metrics, with the detectors and the numbers of images that they depend on.

    Raises:
        ConfigError, SourceError, StoreError, WeightsError: the images, the reference or a detector are unusable.
    """
    from .pipeline import evaluate as stage

    return stage.run(_config_of(EvaluateConfig, config, settings))


def load_model(
    checkpoint: str | Path,
    *,
    ema: bool = True,
    device: str | torch.device = "cpu",
    path_type: Literal["linear", "cosine"] | None = None,
    latents_stats: str | Path | None = None,
) -> TrainedModel:
    """Load the SiT of a checkpoint in evaluation mode, with what sampling from it needs.

    Args:
        checkpoint: a run folder (its last checkpoint), a checkpoint file of repa-pipe, REPA, iREPA or REG, or the name
            of a released checkpoint, which is downloaded.
        ema: load the EMA weights.
        device: where to put the model.
        path_type: the interpolant that the model was trained with, for files that do not record it.
        latents_stats: the file with the statistics of the latents, for checkpoints of iREPA.

    Returns:
        The `model`, the `config` and the `step` of its training, and of its `store` the name of the VAE, scale and bias
        of the latents, and the names of the classes.

    Raises:
        CheckpointError: there is no checkpoint, it is damaged, or its model is not supported.
        ConfigError: `path_type` or `latents_stats` contradicts what the checkpoint records.
        WeightsError: a released checkpoint cannot be downloaded.
    """
    from .pipeline.artifacts.checkpoints import load_model as load
    from .pipeline.artifacts.checkpoints import resolve_checkpoint
    from .pipeline.artifacts.published import Unrecorded

    stated = Unrecorded(path_type, None if latents_stats is None else str(latents_stats))
    trained = load(resolve_checkpoint(str(Path(checkpoint).expanduser())), ema, stated)
    trained.model.to(device)
    return trained


def _config_of(kind: type[C], config: C | None, settings: Mapping[str, Any]) -> C:
    """Return the config that a function was given, or build it from keyword arguments."""
    if config is None:
        return kind.from_settings({name: _plain(value) for name, value in settings.items()}, f"{kind.kind}()")
    if settings:
        raise TypeError(f"{kind.kind}() takes a {kind.__name__} or keyword arguments, not both")
    if not isinstance(config, kind):
        raise TypeError(
            f"{kind.kind}() takes a {kind.__name__} or keyword arguments such as {kind.result_fields()[0]}=…, found a "
            f"{type(config).__name__}"
        )
    return config


def _plain(value: Any) -> Any:
    """Return paths as strings, also within lists."""
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value
