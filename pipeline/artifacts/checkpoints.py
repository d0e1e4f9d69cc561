"""Training checkpoints: written atomically, and read without executing code from them.

A checkpoint is a `torch.save` of plain values and tensors:
`{"model", "ema", "opt", "scaler", "steps", "random_streams", "config", "sit", "store"}`. `model` and `ema` are SiT
state dicts with the published names, `random_streams` is the version of the random streams (`runtime/seeds.py`; absent
means 1), `sit` is the SiTConfig (of a DiT-DH, `dit_dh` is its config instead), `store` describes what the run was
trained from (scale, bias, VAE, fingerprints). With token latents, `latents` holds their statistics, `{"mean", "var",
"eps"}`. `heads` are names of modules in the model that terms of the objective have trained, which sampling leaves out.
Finding one imports no torch, reading one does.
"""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypedDict

from msgspec import Meta

from ...config import ProbeConfig, SampleConfig, TrainConfig
from ...converter import require_plain, shown, structure, unstructure
from ...errors import CheckpointError, DamagedCheckpointError, DamagedWeightsError, WeightsError, first_line
from ...models.architectures import KEYS, AnyConfig, make_model, read_model_config, require_fitting
from ...models.checked_zip import find_damage
from ...models.weight_files import read_weights_file, tensors_under
from ...stores.files import atomic_write
from ...stores.order import ARGSORT, OrderName
from ..runtime.lease import require_held
from ..runtime.seeds import STREAMS_VERSION
from .exported import CHECKSUM, read_exported
from .exported import SUFFIX as EXPORTED_SUFFIX
from .hub_models import local_file
from .latents_stats import Latents
from .published import PUBLISHED, Unrecorded, find_published, published_model
from .run_folder import RunFolder
from .state_dicts import find_initial_weights
from .token_statistics import read_normalization

if TYPE_CHECKING:
    from torch import Tensor

    from ...diffusion.normalization import Normalization
    from ...models.diffusion_model import DiffusionModel


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
    order: OrderName = ARGSORT  # of the samples and of those held out; not recorded if it is that of earlier versions
    token_latents: str | None = None  # encoder whose tokens are the latents; then there is no VAE, scale or bias
    statistics: str | None = None  # what identifies the statistics of these tokens

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        values = unstructure(self)
        if self.order == ARGSORT:
            del values["order"]
        if self.token_latents is None:
            del values["token_latents"], values["statistics"]
        return values

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
            "statistics of the latents": (self.statistics, other.statistics),
        }
        for group, fingerprint in other.fingerprints.items():
            recorded = self.fingerprints.get(group, {})
            pairs |= {f"{group} {name}": (recorded.get(name), fingerprint[name]) for name in fingerprint}
        different = [
            f"{name}: recorded {shown(old)}, found {shown(new)}" for name, (old, new) in pairs.items() if old != new
        ]
        if different:
            raise CheckpointError(f"{path} was trained from another store ({'; '.join(different[:4])}): use that store")
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

    require_held()
    try:
        with atomic_write(path, durable=True) as temporary, temporary.open("wb") as file:
            torch.save(values, file)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        disk = next(folder for folder in path.absolute().parents if folder.exists())
        raise CheckpointError(
            f"{path} could not be written ({first_line(error)}). It needs {_num_bytes(values) / 1e9:.2g} GB, "
            f"{shutil.disk_usage(disk).free / 1e9:.2g} GB are free; earlier checkpoints are intact: free some "
            "space and re-run the command"
        ) from error


def _num_bytes(values: Any) -> int:
    """Return the bytes of all tensors in nested dicts and lists."""
    if isinstance(values, dict | list | tuple):
        return sum(map(_num_bytes, values.values() if isinstance(values, dict) else values))
    return int(getattr(values, "nbytes", 0))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of repa-pipe onto the CPU, and compare all of it with its checksums.

    Published checkpoints are other files.

    Raises:
        DamagedCheckpointError: bytes have changed, or a part is missing.
        CheckpointError: the file is missing, or another one.
    """
    values = _read(path)
    _require_own(values, path)
    return values


def is_intact(path: Path) -> bool:
    """Return whether the bytes of a checkpoint have their checksums; imports no torch, and reads all of the file."""
    try:
        return zipfile.is_zipfile(path) and find_damage(path) is None
    except OSError:  # such as a bad sector
        return False


@dataclass(frozen=True, slots=True)
class Header:
    """What a checkpoint records besides its tensors."""

    steps: int
    config: TrainConfig
    model: AnyConfig
    store: StoreMetadata
    random_streams: int


class _Counts(TypedDict):
    steps: Annotated[int, Meta(ge=0)]
    random_streams: Annotated[int, Meta(ge=1, le=STREAMS_VERSION)]


def read_header(values: Mapping[str, Any], path: Path) -> Header:
    """Return the header of the contents of a checkpoint.

    Raises:
        CheckpointError, ConfigError: a value has another type or is out of its range, or the header contradicts the
            weights.
    """
    names = ("steps", "config", "store", *KEYS)
    plain = {"random_streams": 1} | {name: values[name] for name in (*names, "random_streams") if name in values}
    require_plain(plain, str(path), CheckpointError)
    counts = {name: plain[name] for name in ("steps", "random_streams")}
    structure(counts, _Counts, str(path), CheckpointError)
    model = read_model_config(plain, str(path))
    store = StoreMetadata.from_json(plain["store"], f"{path}: store")
    try:
        require_fitting(model, tensors_under(values, "ema" if "ema" in values else "model", path))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    _require_normalization(store, model.in_channels, path)
    return Header(**counts, config=TrainConfig.from_json(plain["config"], f"{path}: config"), model=model, store=store)


def _require_normalization(store: StoreMetadata, channels: int, path: Path) -> None:
    """Raise CheckpointError unless a VAE's latents have a scale and bias per channel, and tokens have none."""
    numbers = (*store.latents_scale, *store.latents_bias)
    expected = channels if store.token_latents is None else 0
    if not len(store.latents_scale) == len(store.latents_bias) == expected or not all(map(isfinite, numbers)):
        raise CheckpointError(
            f"{path}: store: expected a finite scale and bias of each of {expected} channels of the latents, "
            f"found {shown(store.latents_scale)} and {shown(store.latents_bias)}"
        )


_OWN_KEYS = {"model", "ema", "steps", "config", "store"}  # and one of `KEYS`


def _require_own(values: dict[str, Any], path: Path) -> None:
    if not (values.keys() >= _OWN_KEYS and values.keys() & KEYS):
        expected = ", ".join(sorted({*_OWN_KEYS, "sit"}))
        raise CheckpointError(
            f"{path} is not a checkpoint of repa-pipe: expected the keys {expected}; found "
            f"{', '.join(list(values)[:6])}"
        )


def _read(path: Path) -> dict[str, Any]:
    """Read a file of weights, in any format; raise CheckpointError when it is missing or damaged."""
    if not path.exists():
        raise CheckpointError(f"no checkpoint at {path}")
    try:
        return read_contents(path)
    except DamagedWeightsError as error:
        raise DamagedCheckpointError(f"{path} cannot be read as a checkpoint ({error})") from error
    except WeightsError as error:
        raise CheckpointError(f"{path} cannot be read as a checkpoint ({error})") from error


def read_contents(path: Path) -> dict[str, Any]:
    """Read a file of weights, in any format; an exported checkpoint has the entries of a checkpoint.

    Raises:
        WeightsError, CheckpointError: the file is missing, damaged, or from a later version.
    """
    exported = read_exported(path) if path.suffix == EXPORTED_SUFFIX else None
    return read_weights_file(path) if exported is None else exported


def load_initial_weights(path: str, num_classes: int) -> dict[str, Tensor]:
    """Return the EMA weights of a checkpoint of any supported program, or the tensors of a file of weights alone.

    Args:
        path: the file of `--init-from`, or a model on the Hub.
        num_classes: the number of classes of the model that they initialize.

    Raises:
        WeightsError: the file is missing or damaged.
        CheckpointError: it holds no SiT, or one with another number of classes.
    """
    content = read_contents(local_file(path))
    tensors = find_initial_weights(content, path)
    found = _num_classes(content, tensors)
    if found not in (None, num_classes):
        raise CheckpointError(
            f"--init-from {path} has {found:,} classes, this run {num_classes:,}: pass --num-classes {found}, which "
            "must exceed the largest label, or choose another checkpoint"
        )
    return tensors


def _num_classes(content: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> int | None:
    """Return the recorded number of classes, else that of REPA's table, which ends with the null label."""
    recorded = next((content[key] for key in sorted(KEYS) if key in content), None)
    if isinstance(recorded, Mapping) and isinstance(recorded.get("num_classes"), int):
        return int(recorded["num_classes"])
    tables = [value for name, value in tensors.items() if name.endswith("y_embedder.embedding_table.weight")]
    return len(tables[0]) - 1 if tables else None


def resolve_checkpoint(path: str) -> Path:
    """Return the file of a checkpoint.

    Args:
        path: a checkpoint file, a run folder (its last checkpoint), the name of a released checkpoint, or a model on
            the Hugging Face Hub, `hf://USER/NAME[@REVISION]`.

    Raises:
        CheckpointError: there is no checkpoint.
        WeightsError: a released checkpoint cannot be downloaded.
    """
    given = local_file(path)
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


def unrecorded(config: SampleConfig | ProbeConfig) -> Unrecorded:
    """Return what the flags of a command state about a checkpoint."""
    return Unrecorded(config.path_type, config.latents_stats)


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """The model of a checkpoint, and how it was trained."""

    model: DiffusionModel
    store: StoreMetadata
    config: TrainConfig
    step: int
    normalization: Normalization | None = None  # of token latents


def load_model(path: Path, ema: bool, stated: Unrecorded | None = None) -> TrainedModel:
    """Load the model of a checkpoint of repa-pipe or of a published program on the CPU, in evaluation mode.

    Args:
        path: the file.
        ema: whether to load the EMA weights.
        stated: what the user states about a checkpoint that does not record it.

    Raises:
        CheckpointError: the file is missing or damaged, or its model is not supported.
        ConfigError: `stated` contradicts the file.
    """
    from ...models.sit import load_sit_state

    values, stated = _read(path), stated or Unrecorded()
    if not values.keys() & {"store", *KEYS}:
        return _published(values, ema, path, stated)
    if CHECKSUM in values:
        _require_kind(values, ema, path)
    else:
        _require_own(values, path)
    header = read_header(values, path)
    stated.require_none(path, header.config.path_type)
    model = make_model(header.model)
    try:
        load_sit_state(model, _without_heads(tensors_under(values, "ema" if ema else "model", path), values, path))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    normalization = None
    if header.store.token_latents is not None:
        shape = (header.model.in_channels, header.model.input_size, header.model.input_size)
        normalization = read_normalization(values.get("latents"), shape, path)
    return TrainedModel(model.eval(), header.store, header.config, header.steps, normalization)


def _require_kind(values: Mapping[str, Any], ema: bool, path: Path) -> None:
    """Raise CheckpointError unless an exported checkpoint has the requested weights."""
    if ("ema" if ema else "model") not in values:
        kind, remedy = ("the weights without EMA", "add") if ema else ("the EMA weights", "remove")
        raise CheckpointError(f"{path} was exported with {kind} alone: {remedy} --no-ema")


def _without_heads(weights: Mapping[str, Tensor], values: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """Return the tensors without those of the heads that terms of the objective have trained."""
    heads = structure(values.get("heads", []), list[str], f"{path}: heads", CheckpointError)
    return {name: value for name, value in weights.items() if name.split(".")[0] not in heads}


def _published(values: dict[str, Any], ema: bool, path: Path, stated: Unrecorded) -> TrainedModel:
    found = published_model(values, ema, path, stated)
    latents = found.latents
    settings = {"store": "", "path_type": found.path_type, "time_shift": found.time_shift}
    if isinstance(latents, Latents):
        metadata = StoreMetadata(latents.vae or "", latents.scale, latents.bias, (), "", {})
        config = TrainConfig.from_settings(settings | {"vae": latents.vae}, str(path))
        return TrainedModel(found.model.eval(), metadata, config, found.step)
    metadata = StoreMetadata("", (), (), (), "", {}, token_latents="an encoder")
    config = TrainConfig.from_settings(settings, str(path))
    return TrainedModel(found.model.eval(), metadata, config, found.step, latents)
