"""`repa-pipe export`: write the model of a checkpoint in a form that others load.

What exists with the same contents is kept; anything else is never overwritten.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import ExportConfig
from ..errors import ConfigError
from .artifacts.checkpoints import TrainedModel, load_checkpoint, load_model, read_header, resolve_checkpoint
from .artifacts.diffusers_folder import write_diffusers
from .artifacts.exported import CHECKSUM, SUFFIX, checksum_of, exported_of, without_folders, write_exported
from .artifacts.exported_folder import is_same_folder, new_folder
from .artifacts.hub_models import WEIGHTS, HubModel, upload
from .artifacts.run_folder import run_of
from .reporting.model_card import Described, write_card
from .runtime.lease import lease

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ExportResult:
    """The output of `export`."""

    out: str
    checkpoint: str
    step: int
    weights: str  # ema or model
    num_bytes: int
    uploaded: str | None = None  # the model on the Hub, with the SHA of the commit


def run(config: ExportConfig) -> ExportResult:
    """Export the weights of a checkpoint.

    Raises:
        ConfigError: `--out` has another ending, or exists and holds something else.
        CheckpointError: the checkpoint is missing, damaged or not one of repa-pipe; its model has no such form; or the
            output cannot be written.
        WeightsError: the VAE is unavailable.

    An upload that fails leaves the complete folder; the same command resumes it.
    """
    out = Path(config.out)
    check_out(config)
    checkpoint = resolve_checkpoint(config.checkpoint)
    values = load_checkpoint(checkpoint)
    header = read_header(values, checkpoint)
    tensors, facts = exported_of(values, config.ema)
    with lease(out.absolute().parent, out.name):
        if config.to == "safetensors":
            is_new = write_exported(out, tensors, facts)
        else:
            is_new = _write_folder(config, checkpoint, tensors, facts)
    if not is_new:
        logger.info("%s already exists with the same contents; skipping", out)
    uploaded = None
    if config.repo is not None:
        uploaded = str(HubModel(config.repo, upload(out, config.repo, config.private)))
    return ExportResult(str(out), str(checkpoint), header.steps, facts["weights"], _num_bytes(out), uploaded)


def check_out(config: ExportConfig) -> None:
    """Raise ConfigError unless the output has the name of what is exported."""
    out = Path(config.out)
    if config.to == "safetensors" and (out.suffix != SUFFIX or out.is_dir()):
        raise ConfigError(f"--out is {str(out)!r}: expected the name of a file that ends in {SUFFIX}")
    if config.to != "safetensors" and (out.suffix == SUFFIX or out.is_file()):
        raise ConfigError(f"--out is {str(out)!r}: expected a folder")


def _write_folder(
    config: ExportConfig, checkpoint: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]
) -> bool:
    out = Path(config.out)
    digest = checksum_of(tensors, json.dumps(facts, sort_keys=True))
    parts = {"weights_file": config.to == "hub", "diffusers": _has_pipeline(config)}
    record = {**parts, "license": config.license, CHECKSUM: digest, "checkpoint": facts}
    if is_same_folder(out, record):
        return False
    trained = load_model(checkpoint, config.ema)
    with new_folder(out, record) as folder:
        if config.to == "hub":
            write_exported(folder / WEIGHTS, tensors, facts)
        if _has_pipeline(config):
            write_diffusers(folder, trained)
        write_card(folder, _described(config, trained), run_of(checkpoint))
    return True


def _has_pipeline(config: ExportConfig) -> bool:
    return config.to == "diffusers" or config.with_diffusers


def _described(config: ExportConfig, trained: TrainedModel) -> Described:
    return Described(
        name=config.repo or Path(config.out).name,
        license=str(config.license),
        config=trained.config,
        shared=without_folders(trained.config),
        step=trained.step,
        ema=config.ema,
        num_weights=sum(weight.numel() for weight in trained.model.parameters()),
        vae=None if trained.store.token_latents else Path(trained.store.vae).name,
        classes=trained.model.config.num_classes,
        checkpoint=str(HubModel(config.repo)) if config.repo else None,
        has_pipeline=_has_pipeline(config),
    )


def _num_bytes(out: Path) -> int:
    return sum(path.stat().st_size for path in ([out] if out.is_file() else out.rglob("*")) if path.is_file())
