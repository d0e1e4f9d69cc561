"""Training checkpoints: written atomically, and read without executing code from them.

A checkpoint is a `torch.save` of plain values and tensors:
`{"model", "ema", "opt", "scaler", "steps", "random_streams", "config", "sit", "store"}`. `model` and `ema` are SiT
state dicts with the published names, `random_streams` is the version of the random streams (`runtime/seeds.py`; absent
means 1), `sit` is the SiTConfig, `store` describes what the run was trained from (scale, bias, VAE, fingerprints).
Finding one imports no torch, reading one does.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...config import TrainConfig
from ...converter import structure, unstructure
from ...errors import CheckpointError, first_line
from ...models.weight_files import harmless_globals, read_weights_file, tensors_under
from ...stores.files import atomic_write
from .published import LATENTS_SCALE, PUBLISHED, find_published, is_published, published_model
from .run_folder import RunFolder

if TYPE_CHECKING:
    from torch import Tensor

    from ...models.sit import SiT


@dataclass(frozen=True, slots=True)
class StoreMetadata:
    """Metadata of a store that sampling and resuming need."""

    vae: str
    latents_scale: tuple[float, ...]
    latents_bias: tuple[float, ...]
    class_names: tuple[str, ...]
    index_digest: str
    fingerprints: dict[str, dict[str, Any]]  # group → fingerprint
    samples: str | None = None  # digest of the samples trained on, if they were selected; None: all

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return unstructure(self)

    @classmethod
    def from_json(cls, values: dict[str, Any], where: str) -> StoreMetadata:
        """Build an instance from the values of `as_json`; raise CheckpointError, naming `where`, for anything else."""
        return structure(values, cls, where, CheckpointError)

    def require_same(self, other: StoreMetadata, path: Path) -> None:
        """Raise CheckpointError when the checkpoint at `path`, trained from this store, is resumed from another one."""
        pairs: dict[str, tuple[Any, Any]] = {
            "images": (self.index_digest, other.index_digest),
            "scale of the latents": (self.latents_scale, other.latents_scale),
            "bias of the latents": (self.latents_bias, other.latents_bias),
        }
        for group, fingerprint in other.fingerprints.items():
            recorded = self.fingerprints.get(group, {})
            pairs |= {f"{group} {name}": (recorded.get(name), fingerprint[name]) for name in fingerprint}
        different = [f"{name}: recorded {old!r}, found {new!r}" for name, (old, new) in pairs.items() if old != new]
        if different:
            raise CheckpointError(f"{path} was trained from another store ({'; '.join(different)}): use that store")
        if self.samples != other.samples:
            raise CheckpointError(
                f"{path} was trained on other samples than --classes and --indices now select (digest: recorded "
                f"{_short(self.samples)}, found {_short(other.samples)}): restore the file, or use another --exp-name"
            )


def _short(digest: str | None) -> str:
    return "none" if digest is None else digest[:12]


def save_checkpoint(path: Path, values: dict[str, Any]) -> None:
    """Write a checkpoint atomically and durably; raise CheckpointError when it cannot be written."""
    import torch

    try:
        with atomic_write(path, durable=True) as temporary, temporary.open("wb") as file:
            torch.save(values, file)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        raise CheckpointError(
            f"{path} could not be written ({error}); earlier checkpoints are intact: free some space and re-run "
            "the command"
        ) from error


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; raise CheckpointError when it is missing, damaged, or not a checkpoint."""
    import torch

    try:
        with harmless_globals():  # published checkpoints contain the options of their training
            values = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"no checkpoint at {path}") from error
    except Exception as error:  # torch raises various exceptions for a damaged zip, pickle or file
        raise CheckpointError(f"{path} cannot be read as a checkpoint ({first_line(error)})") from error
    if not isinstance(values, dict) or not ({"ema", "model"} <= values.keys() or is_published(values)):
        raise CheckpointError(f"{path} is not a training checkpoint: expected the keys 'model' and 'ema'")
    return values


def load_ema_weights(path: str) -> dict[str, Tensor]:
    """Return the EMA weights of a training checkpoint of repa-pipe or REPA, or the tensors of a file of weights alone.

    Raises:
        WeightsError: the file is missing, damaged, or holds no tensors.
    """
    content = read_weights_file(path)
    return tensors_under(content, next((key for key in ("ema", "model") if key in content), None), path)


def resolve_checkpoint(path: str) -> Path:
    """Return the file of a checkpoint.

    Args:
        path: a checkpoint file, a run folder (its last checkpoint), or the name of a released checkpoint.

    Raises:
        CheckpointError: there is no checkpoint.
        WeightsError: a released checkpoint cannot be downloaded.
    """
    given = Path(path)
    if given.is_file():
        return given
    if path in PUBLISHED and not given.exists():
        return find_published(path)
    run = RunFolder(given)
    found = run.checkpoints()
    if not found:
        raise CheckpointError(
            f"no checkpoint in {run.checkpoint_folder}: expected a run folder of 'repa-pipe train', a checkpoint file, "
            f"or one of {', '.join(PUBLISHED)}"
        )
    return found[-1]


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """The model of a checkpoint, and how it was trained."""

    model: SiT
    store: StoreMetadata
    config: TrainConfig
    step: int


def load_model(path: Path, ema: bool) -> TrainedModel:
    """Load the model of a checkpoint of repa-pipe or REPA on the CPU, in evaluation mode; EMA weights if `ema`."""
    from ...models.sit import SiTConfig, load_sit_state, make_sit

    values = load_checkpoint(path)
    if is_published(values):
        model, config, step = published_model(values, ema, path)
        scale = (LATENTS_SCALE,) * model.config.in_channels
        metadata = StoreMetadata(str(config.vae), scale, (0.0,) * len(scale), (), "", {})
        return TrainedModel(model.eval(), metadata, config, step)
    model = make_sit(SiTConfig.from_dict(values["sit"]))
    load_sit_state(model, values["ema" if ema else "model"])
    metadata = StoreMetadata.from_json(values["store"], f"{path}: store")
    config = TrainConfig.from_json(values["config"], f"{path}: config")
    return TrainedModel(model.eval(), metadata, config, values["steps"])
