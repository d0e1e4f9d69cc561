"""Checkpoints of published programs (REPA, iREPA, REG, REPA-E, LightningDiT, RAE, RAEv2, JiT, SR-DiT): by name,
downloaded once, or from a file.

A file holds either `{"model", "ema", "opt", "args", "steps"}`, as saved by their trainers, or weights under other keys
or alone. Sizes follow from the weights. The path is in `args`, if at all; the latents are never recorded.
"""

from __future__ import annotations

import argparse
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...converter import shown, structure
from ...errors import CheckpointError, ConfigError, WeightsError
from ...models.architectures import AnyConfig, make_model
from ...models.jit.config import JiTConfig
from ...models.vae_files import PIXELS, PIXELS_BIAS, PIXELS_SCALE
from ...stores.files import atomic_write, remove_abandoned
from ..runtime.cache import VARIABLE, cache_folder
from ..runtime.console import NOTICE
from .latents_stats import Latents, latents_of_batch_norm, read_latents, repa_latents, srdit_latents
from .state_dicts import find_weights

if TYPE_CHECKING:
    from torch import Tensor

    from ...diffusion.normalization import Normalization
    from ...models.diffusion_model import DiffusionModel

logger = logging.getLogger(__name__)

PATH_TYPES = ("linear", "cosine")
_ADVICE = "Expected a checkpoint of REPA, iREPA, REG, REPA-E, LightningDiT, RAE, RAEv2, JiT, SR-DiT or repa-pipe"
_SRA_HEAD = "ap_head."  # of its training
_BATCH_NORM = "bn."  # REPA-E's, of the latents
_SHIFT_BASE = 4096  # numbers per latent for which RAE, RAEv2 and SR-DiT shift no times
_ORIGINAL_PATH_TYPES = ("Linear", "GVP", "VP")  # names in the options of the original SiT code


@dataclass(frozen=True, slots=True)
class Published:
    """A released checkpoint."""

    url: str
    sha256: str | None  # None if its authors have not published it
    path_type: str = "linear"


# The address is that of `download_model` in REPA's utils.py.
PUBLISHED = {
    "repa-sit-xl-2-256": Published(
        "https://www.dl.dropboxusercontent.com/scl/fi/cxedbs4da5ugjq5wg3zrg/last.pt"
        "?rlkey=8otgrdkno0nd89po3dpwngwcc&st=apcc645o&dl=0",
        None,
    )
}


def find_published(name: str) -> Path:
    """Return the path of a released checkpoint, downloaded if necessary; raise WeightsError when that fails."""
    entry = PUBLISHED[name]
    path = _cached(name)
    if path.exists():
        return path
    import torch

    logger.info("downloading %s from %s to %s", name, entry.url, path)
    try:
        remove_abandoned(path.parent)
        with atomic_write(path) as temporary:
            torch.hub.download_url_to_file(entry.url, str(temporary), hash_prefix=entry.sha256)
    except (OSError, RuntimeError) as error:
        raise WeightsError(
            f"{name} is not at {path} and could not be downloaded ({error}): download {entry.url} on a machine with a "
            f"network and put it there (${VARIABLE} sets another folder), or pass its path as --checkpoint"
        ) from None
    return path


def _cached(name: str) -> Path:
    return cache_folder("checkpoints") / f"{name}.pt"


@dataclass(frozen=True, slots=True)
class Unrecorded:
    """What a user states about a checkpoint that does not record it; None for what the file records, or the default."""

    path_type: str | None = None
    latents_stats: str | None = None

    def require_none(self, path: Path, recorded: str) -> None:
        """Raise ConfigError if something is stated that differs from a checkpoint that records both."""
        require_same_path_type(self.path_type, recorded, path)
        if self.latents_stats:
            raise ConfigError(f"--latents-stats is given, but {path} records its own latents: remove it")


@dataclass(frozen=True, slots=True)
class PublishedModel:
    """The model of a published checkpoint, and what is known about its training."""

    model: DiffusionModel
    path_type: str
    time_shift: float
    latents: Latents | Normalization  # a VAE's, or tokens
    step: int  # 0 if not recorded


def published_model(values: Mapping[str, Any], ema: bool, path: Path, stated: Unrecorded) -> PublishedModel:
    """Build the model of a published checkpoint.

    Args:
        values: the contents of the file.
        ema: whether to load the EMA weights.
        path: the file, for messages.
        stated: what the user states about the checkpoint.

    Raises:
        CheckpointError: the file holds no model, or not the requested weights, or those of an unsupported program.
        ConfigError: `stated` contradicts what the file records.
        WeightsError: the statistics of the latents cannot be read.
    """
    from ...models.infer_config import infer_config
    from ...models.sit import SiT, load_sit_state

    args = _args(values)
    try:
        weights = find_weights(values, ema)
        weights = {name: value for name, value in weights.items() if not name.startswith(_SRA_HEAD)}
        batch_norm = {name: weights.pop(name) for name in list(weights) if name.startswith(_BATCH_NORM)}
        config = infer_config(weights, args.get("encoder_depth"), args.get("num_classes"))
        model = make_model(_as_trained(config, args))
        load_sit_state(model, _rotary_tables(model) | weights, _ADVICE)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    if isinstance(model, SiT) and not args and not model.config.z_dims:
        logger.warning(
            "%s has neither training options nor projectors: if the original SiT code wrote it, where time runs from "
            "noise to data, its images are noise",
            path,
            extra=NOTICE,
        )
    step = values.get("steps", values.get("global_step"))
    is_irepa = "spnorm_method" in args or any(".projection_layer." in name for name in weights)
    latents = _latents(model, batch_norm, is_irepa, path, stated.latents_stats)
    return PublishedModel(
        model,
        _path_type(args, path, stated.path_type) if isinstance(model, SiT) else _linear(path, stated.path_type),
        _time_shift(model, latents),
        latents,
        step if isinstance(step, int) else 0,
    )


def _as_trained(config: AnyConfig, args: Mapping[str, Any]) -> AnyConfig:
    """Return the config with the options of a JiT that its tensors do not tell, if the file records them."""
    names = ("t_eps", "noise_scale") if isinstance(config, JiTConfig) else ()
    recorded = {name: args[name] for name in names if name in args}
    return structure(config.to_dict() | recorded, type(config), "the options", CheckpointError) if recorded else config


def _time_shift(model: DiffusionModel, latents: Latents | Normalization) -> float:
    """Return the shift of the times that follows from the number of latents, in the programs that shift them."""
    from ...models.srdit.model import SRDiT

    if isinstance(latents, Latents) and not isinstance(model, SRDiT):
        return 1.0
    config = model.config
    return max(1.0, math.sqrt(config.in_channels * config.input_size**2 / _SHIFT_BASE))


def _rotary_tables(model: DiffusionModel) -> dict[str, Tensor]:
    """Return the tables of rotary positions, which averaged weights of some programs lack."""
    return {name: value for name, value in model.state_dict().items() if name.endswith(("freqs_cos", "freqs_sin"))}


def _linear(path: Path, stated: str | None) -> str:
    require_same_path_type(stated, "linear", path)
    return "linear"


def _args(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of the training that a file records: those of argparse, or Lightning's hyperparameters."""
    found = values.get("args") or values.get("hyper_parameters")
    if isinstance(found, argparse.Namespace):
        return vars(found)
    return dict(found) if isinstance(found, Mapping) else {}


def _path_type(args: Mapping[str, Any], path: Path, stated: str | None) -> str:
    """Return the path that a checkpoint was trained with, as recorded, else as stated, else linear with a warning."""
    recorded = args.get("path_type")
    if recorded in _ORIGINAL_PATH_TYPES:
        raise CheckpointError(
            f"{path} was written by the original SiT code (its options record path_type {recorded!r}), in which time "
            "runs from noise to data: it cannot be sampled here; expected a checkpoint of REPA, iREPA, REG or repa-pipe"
        )
    if recorded is None:
        released = [entry.path_type for name, entry in PUBLISHED.items() if path.resolve() == _cached(name).resolve()]
        recorded = released[0] if released else None
    if recorded is None and stated is None:
        logger.warning(
            "%s does not record its path; it is taken for linear: if it was trained on the cosine path, pass "
            "--path-type cosine",
            path,
            extra=NOTICE,
        )
    if recorded is not None and recorded not in PATH_TYPES:
        raise CheckpointError(f"{path} records path_type {shown(recorded)}; expected {' or '.join(PATH_TYPES)}")
    if recorded is not None:
        require_same_path_type(stated, recorded, path)
    return str(recorded or stated or "linear")


def require_same_path_type(stated: str | None, recorded: str, path: Path) -> None:
    """Raise ConfigError if a user states another path than the one that a checkpoint records."""
    if stated not in (None, recorded):
        raise ConfigError(f"--path-type is {stated!r}, but {path} was trained on the {recorded} path: remove it")


def _latents(
    model: DiffusionModel, batch_norm: Mapping[str, Tensor], is_irepa: bool, path: Path, stats: str | None
) -> Latents | Normalization:
    from ...models.sit import SiT
    from ...models.srdit.model import SRDiT

    config, is_sit = model.config, isinstance(model, SiT)
    if isinstance(config, JiTConfig):
        if stats:
            raise ConfigError(f"--latents-stats is given, but {path} generates pixels: remove it")
        return Latents(PIXELS, PIXELS_SCALE, PIXELS_BIAS)
    if stats:
        vae = "sd-vae-ft-mse" if is_sit and not batch_norm else None
        return read_latents(stats, (config.in_channels, config.input_size, config.input_size), vae)
    if batch_norm:
        return latents_of_batch_norm(batch_norm, config.in_channels, path)
    if is_irepa:
        raise CheckpointError(
            f"{path} was written by iREPA, whose latents are normalized with statistics in another file: pass it "
            "with --latents-stats (sdvae-ft-mse-f8d4-latents-stats.pt of REPA-E/iREPA-collections on Hugging Face)"
        )
    if isinstance(model, SRDiT):
        return srdit_latents(config.in_channels)
    if not is_sit:
        raise CheckpointError(
            f"{path} does not record the statistics with which its latents are normalized: pass them with "
            "--latents-stats (stat.pt of RAE and RAEv2, latents_stats.pt of LightningDiT)"
        )
    return repa_latents(config.in_channels)
