"""Training checkpoints: written whole or not at all, read without running code from them.

A checkpoint is a `torch.save` of plain values and tensors:
`{"model", "ema", "opt", "scaler", "steps", "config", "sit", "store"}`. `model` and `ema` are SiT state dicts with the
published names, `sit` the SiTConfig, `store` what the run was trained from (scale, bias, VAE, fingerprints).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...config import TrainConfig
from ...errors import CheckpointError, first_line
from ...models.sit import SiT, SiTConfig, load_sit_state
from ...models.sit.entangled import make_sit
from ...models.weight_files import harmless_globals, read_weights_file, tensors_under
from ...stores.files import atomic_write
from .published import LATENTS_SCALE, PUBLISHED, find_published, is_published, published_model

FOLDER = "checkpoints"
SUFFIX = ".pt"


@dataclass(frozen=True, slots=True)
class StoreMetadata:
    """What sampling and resuming need to know of the store."""

    vae: str
    latents_scale: tuple[float, ...]
    latents_bias: tuple[float, ...]
    class_names: tuple[str, ...]
    index_digest: str
    fingerprints: dict[str, dict[str, Any]]  # group → fingerprint

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        values = {name: getattr(self, name) for name in self.__slots__}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> StoreMetadata:
        """From what `as_json` gave."""
        plain: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        return cls(**plain)


def checkpoint_path(run: Path, step: int) -> Path:
    """`<run>/checkpoints/0050000.pt`, as published."""
    return run / FOLDER / f"{step:07d}{SUFFIX}"


def list_checkpoints(run: Path) -> list[Path]:
    """Whole checkpoints of a run, oldest first; temporary files of killed writers are none."""
    return sorted(path for path in (run / FOLDER).glob(f"*{SUFFIX}") if path.stem.isdigit())


def broken_path(run: Path, step: int) -> Path:
    """`<run>/checkpoints/nan-0050000.pt`: the state before a step that was not finite; no run goes on from it."""
    return run / FOLDER / f"nan-{step:07d}{SUFFIX}"


def save_checkpoint(path: Path, values: dict[str, Any]) -> None:
    """Write a checkpoint under its final name only when it is on disk; CheckpointError when it can't be."""
    try:
        with atomic_write(path, durable=True) as temporary, temporary.open("wb") as file:
            torch.save(values, file)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        raise CheckpointError(
            f"{path} could not be written ({error}): earlier checkpoints are whole; make room and start the same "
            "command again"
        ) from error


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; CheckpointError when it is absent, damaged, or no checkpoint."""
    try:
        with harmless_globals():  # published checkpoints hold the options of their training
            values = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"no checkpoint at {path}") from error
    except Exception as error:  # a damaged zip, pickle or file: torch raises many kinds
        raise CheckpointError(f"{path} cannot be read as a checkpoint ({first_line(error)})") from error
    if not isinstance(values, dict) or not ({"ema", "model"} <= values.keys() or is_published(values)):
        raise CheckpointError(f"{path} is no training checkpoint: it lacks 'model' and 'ema'")
    return values


def load_averaged_weights(path: str) -> dict[str, Tensor]:
    """The averaged weights of a training checkpoint, published or our own, or a file of nothing but weights.

    Raises WeightsError for a file that is missing, damaged, or holds no tensors.
    """
    content = read_weights_file(path)
    return tensors_under(content, next((key for key in ("ema", "model") if key in content), None), path)


def resolve_checkpoint(path: str) -> Path:
    """A checkpoint file, the last one of a run's folder, or a released one by name.

    CheckpointError when there is none, WeightsError when a released one cannot be downloaded.
    """
    given = Path(path)
    if given.is_file():
        return given
    if path in PUBLISHED and not given.exists():
        return find_published(path)
    there = list_checkpoints(given)
    if not there:
        raise CheckpointError(
            f"no checkpoint in {given / FOLDER}: name a run of 'repa-pipe train', a checkpoint file, or one of "
            f"{', '.join(PUBLISHED)}"
        )
    return there[-1]


def drop_old_checkpoints(run: Path, keep: int, milestone_steps: int) -> None:
    """Keep the last one, `keep` before it, and one every `milestone_steps` steps; `keep` 0 keeps all."""
    if keep:
        for path in list_checkpoints(run)[: -(keep + 1)]:
            if not milestone_steps or int(path.stem) % milestone_steps:
                path.unlink()


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """The model of a checkpoint and what is known of it."""

    model: SiT
    store: StoreMetadata
    config: TrainConfig
    step: int


def load_model(path: Path, ema: bool) -> TrainedModel:
    """The model of a checkpoint, ours or REPA's, in evaluation mode on the CPU; averaged weights with `ema`."""
    values = load_checkpoint(path)
    if is_published(values):
        model, config, step = published_model(values, ema, path)
        scale = (LATENTS_SCALE,) * model.config.in_channels
        facts = StoreMetadata(str(config.vae), scale, (0.0,) * len(scale), (), "", {})
        return TrainedModel(model.eval(), facts, config, step)
    model = make_sit(SiTConfig.from_dict(values["sit"]))
    load_sit_state(model, values["ema" if ema else "model"])
    facts = StoreMetadata.from_json(values["store"])
    return TrainedModel(model.eval(), facts, TrainConfig.from_json(values["config"]), values["steps"])
